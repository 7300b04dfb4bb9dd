"""Qwen2-VL's case."""

from lrkit.families.qwen2_vl.geometry import ImageGeometry
from tests.families.cases import FamilyCase, Peer
from tests.published import write_published

CASE = FamilyCase(
    name="qwen2_vl",
    variants={
        "old files": lambda folder: write_published(folder, embedding=0.05),
        "new files, untied, in shards": lambda folder: write_published(folder, "new", tied=False, shard="8MB", seed=1),
    },
    peer=Peer(model="Qwen2VLForConditionalGeneration", processor="Qwen2VLProcessor"),
    geometries={
        "published": ImageGeometry(),
        "small": ImageGeometry(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096),
        "not merged": ImageGeometry(patch_size=8, merge_size=1, temporal_patch_size=1, min_pixels=64, max_pixels=9000),
    },
    sizes=((28, 28), (56, 56), (3600, 3570), (1, 200)),
    refused=((1, 201), (5000, 20)),
)
