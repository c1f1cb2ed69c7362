"""Multimodal language models: their conversations, what they are trained to say, and how to have them answer."""
