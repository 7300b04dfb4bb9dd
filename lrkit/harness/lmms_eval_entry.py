"""What lmms-eval finds lrkit by: the entry point `lrkit` of the group `lmms_eval.models`.

    python -m lmms_eval --model lrkit --model_args pretrained=tiny,mode=latent --tasks TASK

Place in the pipeline: lmms-eval's registry calls `manifest` -> it imports lmms_eval_model.py when the model is asked
for. Nothing else of lrkit imports lmms_eval.
"""

from typing import Any


def manifest() -> Any:
    """A `ModelManifest` of lmms-eval: the name `lrkit`, and the class that answers under it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="lrkit", simple_class_path="lrkit.harness.lmms_eval_model.LrkitModel")
