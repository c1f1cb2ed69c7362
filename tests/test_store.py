from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genlab.errors import MissingPath, UserError
from genlab.files import write_bytes
from genlab.store import FeatureStore, RowStore, content_key

PUT_FOREVER = """
import sys
from genlab.store import RowStore
store, name = RowStore(sys.argv[1]), sys.argv[2]
number = 0
while number < int(sys.argv[3]):
    store.put(f"{name}{number:06d}", {"number": number})
    print(number, flush=True)
    number += 1
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PUT_FOREVER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def test_rows_are_replaced_listed_and_missed(tmp_path):
    store = RowStore(tmp_path / "new" / "rows.sqlite")
    store.put("b", {"score": np.float32(0.5), "path": Path("x y/ü.mp4")})
    store.put("a", {"score": float("nan")})
    store.put("b", {"score": 1, "text": "'; DROP TABLE rows --"})
    assert store.get("b") == {"score": 1, "text": "'; DROP TABLE rows --"}
    assert store.get("c") is None
    assert [key for key, _ in store.rows()] == ["a", "b"]
    assert store.missing(["d", "a", "c", "d", *map(str, range(2000))]) == ["d", "c", *map(str, range(2000))]
    with pytest.raises(TypeError, match="set cannot be stored"):
        store.put("e", {"x": {1, 2}})
    assert pickle.loads(pickle.dumps(store)).get("b") == store.get("b")


def test_rows_of_a_killed_process_stay(tmp_path):
    path = tmp_path / "rows.sqlite"
    process = writer(path, "row", 10**6)
    assert process.stdout
    while int(process.stdout.readline()) < 200:
        pass
    process.send_signal(signal.SIGKILL)
    told = [int(line) for line in process.stdout.read().split("\n")[:-1] if line]
    process.wait()
    store = RowStore(path)
    assert not store.missing(f"row{number:06d}" for number in range((told or [200])[-1] + 1))
    assert all(row == {"number": int(key[3:])} for key, row in store.rows())
    store.put("afterwards", {})


def test_several_processes_open_and_write_at_once(tmp_path):
    path = tmp_path / "rows.sqlite"
    processes = [writer(path, name, 150) for name in "abcd"]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(list(RowStore(path).rows())) == 600


def test_a_forked_child_uses_its_own_connection(tmp_path):
    store = RowStore(tmp_path / "rows.sqlite")
    store.put("parent", {})
    child = os.fork()
    if child == 0:
        store.put("child", {})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.put("parent again", {})
    assert [key for key, _ in store.rows()] == ["child", "parent", "parent again"]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but somebody's notes\n" * 50)
    with pytest.raises(UserError, match=r"notes\.txt: cannot be read as a row store"):
        RowStore(path)
    assert path.read_text().startswith("not a database")


def test_content_key_follows_content_not_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "w.bin").write_bytes(b"weights")
    one, two = tmp_path / "one", tmp_path / "two"
    assert content_key(one, {"size": 224, "mean": [0.5]}) == content_key(two, {"mean": [0.5], "size": 224})
    before = content_key(one, b"x")
    (one / "sub" / "w.bin").write_bytes(b"Weights")
    different = [
        before,
        content_key(one, b"x"),
        content_key(two),
        content_key("ab", "c"),
        content_key("a", "bc"),
        content_key(1),
        content_key("1"),
    ]
    assert len(set(different)) == len(different)
    assert content_key("fixed", 1, None) == "f40729836a98a136d4c4fefe3179cb82"  # written stores must be found again
    with pytest.raises(MissingPath, match="gone"):
        content_key(tmp_path / "gone")
    with pytest.raises(TypeError, match="object has no key"):
        content_key(object())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_bytes(tmp_path / "a" / "file.bin", b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def features(ids: list[str]) -> dict[str, np.ndarray]:
    numbers = np.array([float(name) for name in ids], np.float32)
    return {"tokens": numbers[:, None, None] + np.zeros((2, 3), np.float16), "label": numbers.astype(np.int64)}


def test_features_continue_after_a_stop_and_over_another_number_of_ranks(tmp_path):
    ids, store, seen = [str(number) for number in range(50)], FeatureStore(tmp_path, "key"), []

    def stopped(some: list[str]) -> dict[str, np.ndarray]:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(some)
        return features(some)

    with pytest.raises(KeyboardInterrupt):
        store.fill(ids, stopped, batch=4)
    assert store.missing(ids) == ids[12:]
    assert [store.fill([*ids, ids[0]], features, 4, rank, 3) for rank in range(3)] == [13, 13, 12]  # 50 in three shares, 12 done
    assert store.fill(ids, stopped) == 0
    loaded = store.load(["7", "31", "7"])
    assert loaded["label"].tolist() == [7, 31, 7]
    reader = pickle.loads(pickle.dumps(store.reader()))
    assert len(reader) == 50 and all(reader[name]["label"] == int(name) for name in ids)
    assert reader["31"]["tokens"].shape == (2, 3) and reader["31"]["tokens"].dtype == loaded["tokens"].dtype
    with pytest.raises(KeyError, match="'50' among the 50"):
        reader["50"]
    assert loaded["tokens"].shape == (3, 2, 3)
    assert (loaded["tokens"][1] == 31).all()
    everything = store.load()
    assert everything["id"].tolist() == sorted(ids)
    assert everything["label"].tolist() == [int(name) for name in sorted(ids)]


def test_features_say_what_is_wrong(tmp_path):
    store = FeatureStore(tmp_path, "key")
    with pytest.raises(KeyError, match="no features; call fill"):
        store.load()
    with pytest.raises(ValueError, match=r"2 ids gave .*\(1,\).*need a row per id"):
        store.fill(["1", "2"], lambda some: {"label": np.zeros(1)})
    assert not store.folder.exists()  # nothing half-written
    store.fill(["1"], features)
    with pytest.raises(KeyError, match="no features of '2'"):
        store.load(["1", "2"])
