"""The fake family's case: there is nothing of it in transformers, and it keeps the battery free of habits."""

from tests.fake_family import NAME
from tests.fake_family.folder import write_base
from tests.fake_family.geometry import RowwiseGeometry
from tests.families.cases import FamilyCase

CASE = FamilyCase(
    name=NAME,
    variants={"base": write_base},
    peer=None,
    geometries={"usual": RowwiseGeometry(), "small": RowwiseGeometry(patch_size=5, max_pixels=900)},
    refused=((1, 33),),
    question="Which colour ?",
    steps=("First look", "then say"),
    answer="red",
)
