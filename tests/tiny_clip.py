"""A tiny CLIP folder from configurations, in the place of ViT-B/16."""

import tiny_sd
import torch


def build(folder, image_size=32, seed=0):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = tiny_sd.tokenizer()
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = CLIPConfig(
        text_config={**shared, **ids, "vocab_size": len(words), "max_position_embeddings": 77},
        vision_config={**shared, "image_size": image_size, "patch_size": image_size // 4},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": image_size}, "crop_size": {"height": image_size, "width": image_size}}
    CLIPProcessor(CLIPImageProcessor(**size), words).save_pretrained(folder)
    return model
