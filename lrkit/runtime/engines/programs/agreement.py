"""Checks that the files of a bundle are of one export: a bundle mixed from two answers nonsense. Torch-free.

Place in the pipeline: program_engine.py asks when it opens a bundle.
"""

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.io_spec import OWN_INPUTS, PAST, WINDOWS
from lrkit.errors import BundleError
from lrkit.families.common.no_windows import zoomed
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.programs.feed import window_of


def agree(bundle: Bundle, processor: Processor) -> None:
    """Holds bundle.json, tokenizer and picture settings against each other.

    Raises:
        BundleError: naming what differs.
    """
    manifest, geometry = bundle.manifest, processor.geometry
    pairs: dict[str, tuple[object, object]] = {
        "the id of the image token": (manifest.tokens.image, processor.image_id),
        "the id of the end token": (manifest.tokens.eos, processor.eos_id),
        "the number of patches of a visual token": (manifest.token_patches, geometry.patches_per_token),
    }
    for entry in manifest.programs.values():
        pairs |= {"the bytes of a patch": (entry.spec.input("pixel_values").shape[1], geometry.patch_bytes)}
        found = {one.name: f"{one.dtype} {list(one.shape)}" for one in entry.spec.inputs}
        for one in geometry.program_inputs:
            pairs[f"the input {one.name}"] = found.pop(one.name, "missing"), f"{one.dtype} {list(one.shape)}"
        if (window := window_of(entry.spec)) is not None:
            seen = zoomed(geometry, entry.settings.replay.fine_zoom)
            pairs["the size of a window"] = window, (seen.num_patches(seen.window_grid), seen.patch_bytes)
            del found[WINDOWS]
        others = [name for name in found if name not in OWN_INPUTS and not name.startswith(PAST)]
        pairs |= {f"the input {name}": (found[name], "none") for name in others}
    for what, (declared, real) in pairs.items():
        if declared != real:
            raise BundleError(
                f"{bundle.folder}: bundle.json says {what} is {declared}, its other files say {real}; copy the bundle "
                "again"
            )
