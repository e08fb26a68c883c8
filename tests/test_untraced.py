"""Layers under what records, transforms or replaces tensors: who cannot see compiled code is given the readable loop."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

from tests.test_layers import Given
from zoo import kernels
from zoo.kernels import native
from zoo.layers import GRU, LSTM, RNN, BatchNormLSTM, LayerNormLSTM
from zoo.noise import Noise
from zoo.regularisers import Zoneout

T, B, I, H = 6, 3, 5, 7
LAYERS = {
    "lstm": LSTM,
    "gru": GRU,
    "papers' gru": partial(GRU, reset_after=False),
    "rnn": RNN,
    "layer norm": LayerNormLSTM,
    "batch norm": partial(BatchNormLSTM, max_steps=T),
}
kinds = pytest.mark.parametrize("kind", LAYERS)


@pytest.mark.parametrize("gradients", [True, False])
@kinds
def test_recorded_by_make_fx_it_holds_for_other_inputs(kind, gradients):
    layer, inputs = LAYERS[kind](I, H).eval(), torch.randn(T, B, I)
    with torch.set_grad_enabled(gradients):
        graph = make_fx(lambda inputs: layer(inputs)[0])(inputs)
    inputs = torch.randn(T, B, I)
    torch.testing.assert_close(graph(inputs), layer(inputs)[0])


@kinds
def test_tensors_without_memory_have_shapes(kind):
    with FakeTensorMode():
        outputs, _ = LAYERS[kind](I, H, state_noise=Zoneout(hidden=0.05))(torch.randn(T, B, I))
    assert isinstance(outputs, FakeTensor)
    assert outputs.shape == (T, B, H)


@kinds
def test_tensors_of_another_class_run_the_readable_loop(kind):
    layer, inputs = LAYERS[kind](I, H).eval(), torch.randn(T, B, I)
    expected, _ = layer(inputs)
    outputs, _ = layer(TwoTensor(inputs, inputs))
    torch.testing.assert_close(outputs.a, expected)
    two = {name: TwoTensor(weight, weight) for name, weight in layer.state_dict().items()}
    outputs, _ = torch.func.functional_call(layer, two, inputs)
    torch.testing.assert_close(outputs.b, expected)


def test_a_class_of_tensors_with_memory_runs_as_any():
    class Image(torch.Tensor):
        pass

    layer, inputs = LSTM(I, H), torch.randn(T, B, I)
    assert kernels.choose("auto", "lstm", inputs.as_subclass(Image), plain=True) == kernels.choose(
        "auto", "lstm", inputs, plain=True
    )
    assert torch.equal(layer(inputs.as_subclass(Image))[0], layer(inputs)[0])


@pytest.mark.skipif(not native.available(), reason="no native code")
@pytest.mark.parametrize("layer_type", [LSTM, LayerNormLSTM])
def test_native_code_refuses_tensors_without_memory(layer_type):
    inputs = torch.randn(T, B, I)
    with pytest.raises(ValueError, match="inputs, a TwoTensor, has none of its own|gates, a TwoTensor"):
        layer_type(I, H, backend="native")(TwoTensor(inputs, inputs))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own formulas
@pytest.mark.parametrize("gradients", [True, False])
@kinds
def test_a_derivative_is_carried_forwards(kind, gradients):
    layer, inputs, tangent = LAYERS[kind](I, H).double().eval(), *torch.randn(2, T, B, I, dtype=torch.float64)
    step = 1e-6
    expected = (layer(inputs + step * tangent)[0] - layer(inputs - step * tangent)[0]) / (2 * step)
    with torch.set_grad_enabled(gradients), forward_ad.dual_level():
        outputs, _ = layer(forward_ad.make_dual(inputs, tangent))
        derivative = forward_ad.unpack_dual(outputs).tangent
    torch.testing.assert_close(derivative, expected, rtol=1e-5, atol=1e-7)


def test_masks_on_the_cpu_where_another_device_is_the_default():
    layer, inputs = LSTM(I, H, state_noise=Zoneout(0.5, 0.05)), torch.randn(T, B, I)
    torch.manual_seed(3)
    expected, _ = layer(inputs)
    torch.manual_seed(3)
    with torch.device("meta"):
        outputs, _ = layer(inputs)
    assert torch.equal(outputs, expected)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@kinds
def test_the_way_back_may_be_called_within_autocast(kind, backend):
    torch.manual_seed(1)
    layer = LAYERS[kind](I, H, state_noise=Given(Noise(hkeep=torch.rand(T, B, H))), backend=backend)
    inputs, found = torch.randn(T, B, I), []
    for within in (False, True):
        outputs, _ = layer(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=within):
            found.append(torch.autograd.grad(outputs.square().sum(), [layer.weight_hh_l0, layer.weight_ih_l0]))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0.02, atol=0.02)  # torch's own product may round
