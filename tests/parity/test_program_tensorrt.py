"""The portable dialect in NVIDIA's own parser and builder, which need no GPU. Skipped without tensorrt_rtx."""

import onnx_ir as ir
import pytest

from lrkit.export.target import Target
from lrkit.model.settings import ReasonerSettings
from tests.programs import build
from tests.tiny import tiny_reasoner

trt = pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')

SETTINGS = {
    "no routing, no replay": {"replay": {"num_tokens": 0}},
    "one pass": {"replay": {"num_tokens": 3}, "routing": {"depth": 1, "alpha": 4}},
    "depth loop": {"replay": {"num_tokens": 3}, "routing": {"depth": 3, "alpha": 4, "threshold": 0.4}},
}


class Log(trt.ILogger):
    """Keeps what the builder says; only the first logger of a process is ever used."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity, text) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(text)


LOG = Log()


def parsed(settings: dict, target: Target):
    """(builder, network, parser) of a tiny program; fails with the parser's own words."""
    program = build(
        tiny_reasoner(ReasonerSettings.model_validate({"think": {"max_latent_steps": 3}, **settings})), target
    )
    builder = trt.Builder(LOG)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOG)
    understood = parser.parse(ir.serde.serialize_model(program.model).SerializeToString())
    problems = [f"{e.node_name()}: {e.desc()}" for e in map(parser.get_error, range(parser.num_errors))]
    assert understood, problems
    return builder, network, parser


@pytest.mark.parametrize(
    "precision", ["int4", pytest.param("fp32", marks=pytest.mark.slow), pytest.param("fp16", marks=pytest.mark.slow)]
)
def test_the_parser_takes_it(precision):
    target = Target(dialect="tensorrt", precision=precision, int4={"block": 32})
    _, network, _ = parsed(SETTINGS["depth loop"], target)
    assert network.num_outputs == 12


def test_the_parser_refuses_the_other_dialect():
    with pytest.raises(AssertionError, match=r"MatMulNBits|Layer"):
        parsed(SETTINGS["depth loop"], Target(dialect="ort", precision="int4", int4={"block": 32}))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_builder_makes_an_engine(name, precision):
    builder, network, _parser = parsed(SETTINGS[name], Target(dialect="tensorrt", precision=precision))
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if -1 in tensor.shape:
            sizes = (2, 20, 64) if tensor.name in ("input_ids", "position_ids") else (4, 24, 96)
            profile.set_shape(tensor.name, *([n if axis == -1 else axis for axis in tensor.shape] for n in sizes))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    LOG.errors.clear()
    assert builder.build_serialized_network(network, config) is not None, LOG.errors[:2]
