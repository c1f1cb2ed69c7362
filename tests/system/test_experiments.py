"""Every shipped configuration runs: two steps through the real command line on a stand-in of its data and weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.fewshot_index import PLACES
from datamodules.tinyworld import make
from genlab.config import compose, shipped_experiments
from genlab.models.viclip import ViCLIP, ViCLIPConfig
from tests.system.programs import run
from tests.tiny_clip import tiny_clip
from tests.tiny_vlms import tiny_qwen25
from tests.vlm.fault_server import serving

pytestmark = [pytest.mark.system, pytest.mark.slow]

WHOLE = [name for name in shipped_experiments() if "model:" in compose([name]).yaml and compose([name]).get("data.class_path")]
PRESETS = [name for name in shipped_experiments() if name.startswith("presets/") and "mllm_defake" not in name]
UNTRAINED = ("zero_shot", "tip_adapter", "video_zero_shot")  # there is nothing to fit
TRAINERS = [name for name in shipped_experiments() if name.startswith("trainer/")]
TESTED = [name for name in WHOLE if "inpaint_consistency" in name]  # nothing to train
ASKERS = [name for name in WHOLE if compose([name]).get("model.class_path") == "genlab.methods.mllm_defake.MllmDefake"]
ASKING = [*([name] for name in ASKERS), ["mllm_defake", "presets/mllm_defake_official"]]  # an endpoint answers
ENCODERS = "genlab.models.picture_encoders"
LITE, TINY_CLIP = f"class_path: {ENCODERS}.LiteEncoder", f'class_path: {ENCODERS}.ClipEncoder, init_args: {{weights: "tiny:clip"}}'
LITE_VISUAL, TINY_TEXTUAL = f"--model.visual={{{LITE}}}", f"--model.textual={{{TINY_CLIP}}}"
SCORED = [f"--model.scored_visual={{{LITE}}}", f"--model.scored_textual={{{TINY_CLIP}}}"]
OWN = {  # options of some methods
    "genlab.methods.domaingallery.DomainGallery": ["--model.source_images=2", "--model.erasure_steps=1", "--model.sim_weight=0"],
    "genlab.methods.mllm_defake_sft.MllmDefakeSFT": ["--model.weights=Qwen/Qwen2.5-VL-3B-Instruct", "--model.max_new_tokens=4"],
    "genlab.methods.mllm_defake_grpo.MllmDefakeGRPO": [
        "--model.weights=Qwen/Qwen2.5-VL-3B-Instruct",
        "--model.max_new_tokens=4",
        "--model.group=2",
    ],
    "genlab.methods.baselines.dreambooth.DreamBooth": ["--model.class_images=2"],
    "genlab.methods.comfusion.ComFusion": ["--model.images_per_scene=2", "--model.fusion_steps=2", LITE_VISUAL, TINY_TEXTUAL, *SCORED],
    "genlab.methods.multimodal_prompt.MultiModalPrompt": ["--model.prior_images=2", *SCORED],
}
DRAWN = ["--data.image_size=64", "--data.pictures=1", "--model.backbone=tiny:sd", "--model.sampling_steps=2"]
FEW_SITTINGS = {"train_captures": 2, "val_captures": 1, "test_captures": 1}
SMALL = ["--data.num_workers=0", "--data.batch_size=2", "--data.eval_batch_size=2", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of the classes that the hub's have, in the folders where GenLab looks for them."""
    from transformers import CLIPConfig, CLIPModel, SwinConfig, SwinModel, VideoMAEConfig, VideoMAEModel, XCLIPConfig, XCLIPModel

    folder = tmp_path_factory.mktemp("weights")
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 16}
    text |= {"bos_token_id": 0, "eos_token_id": 1}
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 224,
        "patch_size": 16,
    }
    words = text | {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=16)).save_pretrained(
        folder / "openai/clip-vit-base-patch16"
    )
    sizes = {"vision_width": 16, "vision_heads": 2, "text_width": 16, "text_heads": 2, "embed_dim": 16, "patch_size": 32}
    ViCLIP(ViCLIPConfig(**sizes)).save_pretrained(folder / "OpenGVLab/ViCLIP-B-16-hf")
    more = {"num_frames": 8, "mit_hidden_size": 16, "mit_num_hidden_layers": 1, "mit_num_attention_heads": 2, "mit_intermediate_size": 16}
    config = XCLIPConfig(text_config=text, vision_config=vision | more, projection_dim=16)
    XCLIPModel(config).save_pretrained(folder / "microsoft/xclip-base-patch16")
    VideoMAEModel(VideoMAEConfig(**vision, num_frames=16)).save_pretrained(folder / "MCG-NJU/videomae-base")
    tiny_qwen25(folder / "Qwen/Qwen2.5-VL-3B-Instruct")
    swin = SwinConfig(image_size=224, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=7)
    SwinModel(swin).save_pretrained(folder / "microsoft/swin-base-patch4-window7-224-in22k")
    return folder


@pytest.fixture(scope="module")
def stand_ins(tiny_genvideo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Data module -> options that give it a very small dataset of its kind."""
    folder = tmp_path_factory.mktemp("data")
    captions = make("captions", folder / "captions", progress=False, pictures=16, held_out=8)
    clips = make("captioned_clips", folder / "captioned_clips", progress=False, clips=16, held_out=16)
    questions = make("questions", folder / "questions", progress=False, pictures=4, held_out=2)
    clip, datasets = tiny_clip(folder / "clip", 32), folder / "coop"
    for dataset, place in PLACES.items():
        make(dataset, datasets / place.folder, progress=False, size=32, train=3, test=1, **({} if dataset == "imagenet" else {"val": 1}))
    make("kinetics400", folder / "actions/kinetics400", progress=False, train_clips=2, val_clips=1, size=32)
    make("hmdb51", folder / "actions/hmdb51", progress=False, clips=4, size=32)
    make("ucf101", folder / "actions/ucf101", progress=False, groups=4, clips=1, size=32)
    return {
        "datamodules.action_video.ActionVideo": [f"--data.root={folder / 'actions'}", "--data.shots=2", "--data.eval_clips=1"],
        "datamodules.domain_images.DomainImages": [
            f"--data.root={write_pictures(folder / 'domain')}",
            "--data.domain=null",
            "--data.category=star",
            *DRAWN,
            "--trainer.val_check_interval=2",
        ],
        "datamodules.subject_scenes.SubjectScenes": [
            "--data.instance=tiny:dreambooth/heart",
            "--data.scenes=[on paper, in a studio]",
            *DRAWN,
        ],
        "datamodules.concepts.Concepts": [
            "--data.root=tiny:multimodal_prompt",
            "--data.entry=1",
            "--data.steps_per_concept=1",
            *DRAWN,
        ],
        "datamodules.fewshot_images.FewShotImages": [
            f"--data.root={datasets}",
            f"--model.backbone={clip}",
            "--data.image_size=32",
            "--data.shots=2",
            "--data.views=2",
        ],
        "datamodules.hyspefas.HySpeFAS": [
            f"--data.root={make('hyspefas', folder / 'hyspefas', progress=False, size=24, **FEW_SITTINGS)}",
            "--model.backbone.init_args.name=tiny",
            "--model.backbone.init_args.weights=null",
        ],
        "datamodules.grounding.Grounding": [
            f"--data.root={make('plain_defake', folder / 'plain_defake', progress=False, train=20, test=2)}",
            "--trainer.accumulate_grad_batches=2",
        ],
        "datamodules.genvideo.GenVideo": [f"--data.root={tiny_genvideo}", "--data.val_fraction=0.3"],
        "datamodules.captioned_images.CaptionedImages": [f"--data.root={captions}", "--data.select=null"],
        "datamodules.captioned_videos.CaptionedVideos": [f"--data.root={clips}"],
        "datamodules.visual_questions.VisualQuestions": [f"--data.root={questions}"],
    }


def write_pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (50 * i, 90, 120)).save(folder / f"{i}.png")
    return folder


def fit(configs: list[str], stand_ins: dict[str, list[str]], weights: Path, cwd: Path, *more: str, verb: str = "fit") -> str:
    files = [word for name in [*configs, "trainer/fast"] for word in ("-c", name)]
    composed = compose(configs)
    data = [*stand_ins[str(composed.get("data.class_path"))], *OWN.get(str(composed.get("model.class_path")), [])]
    return run(verb, *files, "-c", "trainer/cpu", *data, *SMALL, *more, cwd=cwd, GENLAB_WEIGHTS=str(weights))


@pytest.mark.parametrize("name", sorted(set(WHOLE) - set(TESTED) - {name for names in ASKING for name in names}))
def test_experiments(name: str, stand_ins: dict[str, list[str]], weights: Path, tmp_path: Path) -> None:
    verb = "test" if Path(name).stem in UNTRAINED else "fit"
    fit([name], stand_ins, weights, tmp_path, verb=verb)
    assert list((tmp_path / "runs" / name.removesuffix(".yaml")).glob(f"seed*/{'*/' if verb == 'test' else ''}results.json"))


@pytest.mark.parametrize("name", TESTED)
def test_experiments_that_only_measure(name: str, tmp_path: Path) -> None:
    more = ["--data.n_images=2", "--data.size=64", "--model.k=2", "--model.distances=[l1]"]  # the backbone of LPIPS is not here
    run("test", "-c", name, "-c", "trainer/cpu", "-c", "trainer/fast", "--data.root=tiny:inpainting", *more, cwd=tmp_path)
    assert list((tmp_path / "runs" / name.removesuffix(".yaml")).glob("seed*/test-inpainting/results.json"))


@pytest.mark.parametrize("names", ASKING)
def test_experiments_that_ask(names: list[str], tmp_path: Path) -> None:
    root = make("defake", tmp_path / "data", progress=False, train=1, test=1)
    with serving(["fake", "This is a real photograph."]) as server:
        more = [f"--model.engine.init_args.base_url={server.url}", "--data.batch_size=2"]
        configs = [word for name in [*names, "trainer/cpu", "trainer/fast"] for word in ("-c", name)]
        run("test", *configs, f"--data.root={root}", "--data.split=null", *more, cwd=tmp_path)
    assert server.bodies and list((tmp_path / "runs" / names[0].removesuffix(".yaml")).glob("seed*/test-defake/results.json"))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str, stand_ins: dict[str, list[str]], weights: Path, tmp_path: Path) -> None:
    stem = Path(name).stem
    base = max((each.removesuffix(".yaml") for each in WHOLE if stem.startswith(each.removesuffix(".yaml"))), key=len)
    more = ["--data.train_generators=[flicker]"] if "one_to_many" in name else []
    fit([base, name], stand_ins, weights, tmp_path, *more)


def test_presets_do_what_they_say(weights: Path) -> None:
    composed = compose(["demamba", "presets/demamba_official"])
    assert composed.get("model.init_args.zone_order") == "official" and composed.get("model.init_args.mamba.bidirectional") == "channel"
    assert compose(["demamba"]).get("model.init_args.zone_size") == 2


@pytest.mark.parametrize("name", TRAINERS)
def test_overlays_compose(name: str) -> None:
    from genlab.config import check

    assert not check(compose(["demamba", name], [("trainer.default_root_dir", "runs/x"), ("data.root", "x")]), "fit")
