"""A shape of a few thousand weights, for what asks for shapes."""

SHAPE = {
    "description": "a few thousand weights", "hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
    "intermediate_size": 96, "vocabulary": 256, "tied_embeddings": True, "vision_depth": 1, "vision_width": 32,
    "vision_heads": 2, "vision_mlp_ratio": 2, "patch_size": 4, "merge_size": 2, "image_size": [80, 32],
}  # fmt: skip
