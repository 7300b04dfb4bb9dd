"""SmolVLM2's case."""

from lrkit.families.idefics3.smolvlm.geometry import SmolVLMPictures
from tests.families.cases import FamilyCase, Peer
from tests.families.published_idefics3 import TILE, patches_of, write_published

CASE = FamilyCase(
    name="smolvlm",
    variants={
        "new files, in shards": lambda folder: write_published(
            folder, "smolvlm", seed=4, shard="4MB", new_files=True, pictures={"longest_edge": 3 * TILE}
        )
    },
    # SmolVLM's own processor wants num2words for the numbers of videos; on pictures the older one says the same.
    peer=Peer(model="SmolVLMForConditionalGeneration", processor="Idefics3Processor", patches=patches_of),
    geometries={"small": SmolVLMPictures(patch_size=4, scale_factor=1, tile=16, longest_edge=48)},
    sizes=((96, 96), (97, 31)),
    refused=(),
    views=2,
)
