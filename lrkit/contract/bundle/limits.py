"""Refuses what a bundle was not made for, before anything is computed. Torch-free.

Place in the pipeline: `Processor.encode_prompt` asks before it decodes a picture and before it cuts one into patches.
The engine asks again before it runs. Pictures that are only too large were shrunk before (fitting.py).
"""

from lrkit.contract.bundle.manifest import Limits
from lrkit.errors import CapacityError


def check_images(limits: Limits, num_images: int) -> None:
    """Raises `CapacityError` where a prompt has more pictures than the bundle takes."""
    if num_images > limits.max_images:
        raise CapacityError(
            f"the prompt has {num_images} pictures, above the bundle's limit max_images of {limits.max_images}; "
            "give fewer, or export again with a larger limit"
        )


def check_prompt(limits: Limits, num_tokens: int, num_images: int, patches: int) -> None:
    """`num_tokens` of the prompt, visual ones included; `patches` of all its pictures.

    Raises:
        CapacityError: naming the limit and the value.
    """
    check_images(limits, num_images)
    if patches > limits.max_patches:
        raise CapacityError(
            f"the pictures make {patches} patches, above the bundle's limit max_patches of {limits.max_patches}; "
            "give smaller pictures, or export again with a larger limit"
        )
    if num_tokens > limits.max_prompt_tokens:
        raise CapacityError(
            f"the prompt has {num_tokens} tokens, above the bundle's limit max_prompt_tokens of "
            f"{limits.max_prompt_tokens}; shorten the question or shrink the pictures, or raise the limit at export"
        )


def check_asked(name: str, asked: int | None, limit: int) -> int:
    """What was asked for under that name, or the limit itself where nothing was.

    Raises:
        CapacityError: more than the bundle allows.
    """
    if asked is not None and asked > limit:
        raise CapacityError(
            f"{name} is {asked}, above the bundle's limit of {limit}; ask for less, or export again with a larger limit"
        )
    return limit if asked is None else asked
