"""The whole road in one program: train, evaluate, export, ask without torch, profile.

    python examples/whole_road.py road

It takes one update of each stage of the recipe `smoke`, so the model learns nothing, and its answers prove nothing of
its program. A real run takes a recipe such as `trail-latent` and leaves `allow_unproven` out. It needs
`pip install "lrkit[train,export]"`.
"""

import argparse
import sys
from pathlib import Path

from lrkit import (
    LrkitError,
    Reasoner,
    check_bundle,
    evaluate_model,
    export_model,
    load_recipe,
    load_samples,
    profile_models,
    train_recipe,
)

QUICK = ["eval.samples=0", *(f"stages.{number}.updates=1" for number in range(3))]
SMALL = ["limits.max_images=1", "limits.max_new_tokens=8"]
FEW = ["samples.0.count=2", "max_new_tokens=8", "phase_samples=0", "gallery=0"]


def main() -> int:
    args = parse_args()
    try:
        travel(args.folder)
    except LrkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def travel(folder: Path) -> None:
    recipe = load_recipe("smoke", QUICK)
    checkpoint = train_recipe(recipe, folder / "run")
    print(f"trained {recipe.name}: {checkpoint}")

    samples = load_samples("trail:main", 2)
    bundle = export_model(checkpoint, folder / "bundle", "cpu-fp32", SMALL, samples=samples, allow_unproven=True)
    print(f"exported: {bundle.num_bytes:,} bytes, {len(check_bundle(bundle.folder))} problems")

    figures = evaluate_model(bundle.folder, samples=2, latency_samples=1).to_dict()["modes"]
    print(", ".join(f"{mode}: {found['ar_steps_mean']:.1f} steps" for mode, found in figures.items()))

    answer = Reasoner.load(bundle.folder).ask(samples[0].images, samples[0].question)
    print(f"asked: {answer.latent_steps} latent steps, then {answer.text!r}")

    report = profile_models([checkpoint, bundle.folder], "smoke", FEW, output=folder / "profile", threads=1)
    print("\n".join(f"{run['id']}: {run['summary']['latency_sec']['median'] * 1000:.1f} ms" for run in report["runs"]))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where run, bundle and report go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
