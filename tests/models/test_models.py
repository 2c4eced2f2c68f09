import pytest
import torch
from torch import nn

from fedsparse import data, models
from fedsparse.models.layers import norm_layer

IMAGES = models.names(text=False)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "size", "count"),
    [
        # 32*25+32 + 64*32*25+64 + 3136*512+512 + 512*10+10, as the paper states
        ("cnn-fedavg", 1, 28, 1_663_370),
        # 784*200+200 + 200*200+200 + 200*10+10, as the paper states
        ("mlp", 1, 28, 199_210),
        # 9*(32 + 32*64 + 64*128) + 2*(32 + 64 + 128) + 16*128*10+10
        ("cnn", 1, 28, 113_386),
        # 9*(3*64 + 64*128 + 128*256 + 256*256 + 256*512 + 3*512*512) + 2*2752 + 5130
        ("vgg11", 3, 32, 9_228_362),
        # 11,159,232 in convolutions + 9,600 in norms + 5,130
        ("resnet18", 3, 32, 11_173_962),
        # 9*(48 + 6*256 + 512 + 5*1024 + 2048 + 5*4096) + 2*688 + 650
        ("resnet20", 3, 32, 269_722),
        # as torchvision's ImageNet version with 10 classes: the strides differ, the weights do not
        ("shufflenetv2", 3, 32, 1_263_854),
        ("mobilenetv2", 3, 32, 2_236_682),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_parameter_counts(name: str, channels: int, size: int, count: int, norm: str) -> None:
    assert parameters(models.build(name, 10, channels, size, norm)) == count


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("channels", "size"),
    [(3, 32), (1, 37)],
    ids=["usual", "odd size, one channel"],
)
def test_every_parameter_gets_a_finite_gradient(name: str, norm: str, channels: int, size: int) -> None:
    torch.manual_seed(0)
    model = models.build(name, 7, channels, size, norm, width=0.25)
    logits = model(torch.randn(4, channels, size, size))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0


SMALLEST = [
    ("cnn", 4),
    ("cnn-fedavg", 4),
    ("mlp", 1),
    ("mobilenetv2", 8),
    ("resnet18", 8),
    ("resnet20", 4),
    ("shufflenetv2", 8),
    ("vgg11", 32),
]


@pytest.mark.parametrize(("name", "smallest"), SMALLEST)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_smallest_image(name: str, smallest: int, norm: str) -> None:
    model = models.build(name, 3, 3, smallest, norm, width=0.25)
    assert model(torch.randn(2, 3, smallest, smallest)).shape == (2, 3)
    with pytest.raises(
        ValueError, match=f"image_size .*at least {smallest if smallest > 1 else 1} pixels, not {smallest - 1}"
    ):
        models.build(name, 3, 3, smallest - 1, norm)


def test_the_table_of_smallest_images_is_complete() -> None:
    assert [name for name, _ in SMALLEST] == IMAGES


@pytest.mark.parametrize("name", IMAGES)
def test_the_seed_decides_the_weights(name: str) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return models.build(name, 10, width=0.25).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", IMAGES)
def test_he_initialisation(name: str) -> None:
    """Std sqrt(2 / fan_in) in every large layer, sqrt(1 / fan_in) in the classifier, biases 0."""
    torch.manual_seed(0)
    model = models.build(name, 100)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer.bias is not None:
            assert not layer.bias.any()
        gain = 1 if layer is layers[-1] else 2
        expected = (gain / layer.weight[0].numel()) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=4 / layer.weight.numel() ** 0.5)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_layers_are_plain_and_convolutions_before_a_norm_have_no_bias(name: str, norm: str) -> None:
    model = models.build(name, 10, norm=norm)
    layers = [m for m in model.modules() if m is not model and any(True for _ in m.parameters(recurse=False))]
    assert {type(m) for m in layers} <= {nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm}
    normed = any(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in layers)
    assert all((m.bias is None) == normed for m in layers if isinstance(m, nn.Conv2d))
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].out_features == 10


@pytest.mark.parametrize("name", ["cnn", "mobilenetv2", "resnet18", "resnet20", "shufflenetv2", "vgg11"])
def test_norm_decides_the_norm_layers(name: str) -> None:
    for norm, kind in (("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)):
        kinds = {type(m) for m in models.build(name, 10, norm=norm).modules()}
        assert kinds & {nn.BatchNorm2d, nn.GroupNorm} == {kind}


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (16, 1), (31, 1), (32, 2), (48, 3), (64, 4), (512, 32)])
def test_groups_of_sixteen_channels(channels: int, groups: int) -> None:
    layer = norm_layer("group", channels)
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups


@pytest.mark.parametrize("name", IMAGES)
def test_width_scales_hidden_layers_only(name: str) -> None:
    narrow, wide = models.build(name, 10, width=0.5), models.build(name, 10, width=2)
    first_narrow, first_wide = (
        next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)).weight for model in (narrow, wide)
    )
    assert first_wide.shape[0] == 4 * first_narrow.shape[0]
    assert first_wide.shape[1:] == first_narrow.shape[1:]
    assert parameters(models.build(name, 10, width=1e-6)) < parameters(narrow) < parameters(wide)


@pytest.mark.parametrize("name", IMAGES)
def test_in_place_activations_change_no_gradient(name: str) -> None:
    def gradients(in_place: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = models.build(name, 10, width=0.25).double()
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = in_place
        model(torch.randn(2, 3, 32, 32, dtype=torch.float64)).logsumexp(1).sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for as_built, apart in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(as_built, apart)


def test_resnet18_stages() -> None:
    """Stages of 64, 128, 256, 512 channels, each but the first at half the size of the one before."""
    model = models.build("resnet18", 10)
    shapes = []
    assert isinstance(model, nn.Sequential)
    x = torch.randn(2, 3, 32, 32)
    for module in model[:-3]:
        x = module(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [
        *[(64, 32, 32)] * 3,
        *[(128, 16, 16)] * 2,
        *[(256, 8, 8)] * 2,
        *[(512, 4, 4)] * 2,
    ]


def test_resnet20_shortcuts_have_no_parameters_and_pad_with_zeros() -> None:
    model = models.build("resnet20", 10)
    shortcut = model.get_submodule("4.shortcut")
    assert not list(shortcut.parameters())
    x = torch.randn(2, 16, 8, 8)
    y = shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "resnet-18"}, "unknown model 'resnet-18': .*did you mean 'resnet18'"),
        ({"name": "transformer"}, "choose one of cnn, cnn-fedavg, gpt, gpt2-32m, mlp, mobilenetv2, resnet18, "),
        ({"name": "gpt", "context": 0}, "context must be at least 1, not 0"),
        ({"norm": "layer"}, "norm must be one of batch, group, not 'layer'"),
        ({"classes": 0}, "classes must be at least 1, not 0"),
        ({"channels": 0}, "channels must be at least 1, not 0"),
        ({"width": 0}, "width must be a finite number above 0, not 0"),
        ({"width": float("nan")}, "width must be a finite number above 0, not nan"),
        ({"name": "vgg11", "image_size": 28}, "'vgg11' needs an image_size of at least 32 pixels, not 28"),
    ],
)
def test_bad_arguments_get_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        models.build(**{"name": "resnet18", "classes": 10, **arguments})


def test_the_small_cnn_learns_digits() -> None:
    """Two epochs over the 1,442 embedded digits: chance is 10 %, nearest class mean gets about 90 %."""
    torch.manual_seed(0)
    train, test = data.load("digits")
    model = models.build("cnn", 10, 1, 16)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for index in torch.cat([torch.randperm(1440), torch.randperm(1440)]).split(32):
        images, labels = train.batch(index)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    images, labels = test.batch(torch.arange(len(test)))
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.93
