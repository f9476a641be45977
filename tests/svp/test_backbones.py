import pytest
import torch
import torchvision

from svp.encoders.backbones import ARCHITECTURES, build_backbone
from svp.errors import InputError


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("size", [8, 28, 32])
def test_features_are_pooled_non_negative_and_as_wide_as_declared(arch, size):
    net = build_backbone(arch, image_size=size).eval()
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = net(x)
        z_last = net(x.to(memory_format=torch.channels_last))
    assert z.shape == (2, net.num_features)
    assert net.num_features >= 128
    assert z.isfinite().all()
    assert (z >= 0).all()
    assert (z > 0).any()
    torch.testing.assert_close(z, z_last, rtol=1e-3, atol=1e-4)


def test_weights_follow_the_generator_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    one = build_backbone("resnet8", image_size=32, generator=torch.Generator().manual_seed(1))
    same = build_backbone("resnet8", image_size=32, generator=torch.Generator().manual_seed(1))
    other = build_backbone("resnet8", image_size=32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(torch.get_rng_state(), before)
    name = "layer1.0.conv1.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvision_checkpoints_load(arch):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, arch)()
    state = {k: torch.zeros(v.shape) for k, v in theirs.state_dict().items()}
    report = build_backbone(arch, image_size=224).load_state_dict(state, strict=False)
    assert report.missing_keys == []
    assert sorted(report.unexpected_keys) == ["fc.bias", "fc.weight"]


def test_thumbnail_stem_keeps_the_grid():
    small, large = (build_backbone("resnet18", image_size=s) for s in (64, 65))
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, torch.nn.Identity)
    assert large.conv1.kernel_size == (7, 7)


def test_small_nets_take_large_images_at_a_small_first_grid():
    net = build_backbone("resnet8", image_size=224).eval()
    with torch.no_grad():
        assert net.stem(torch.zeros(1, 3, 224, 224)).shape[-1] <= 16


def test_unknown_names_and_sizes_are_explained():
    with pytest.raises(InputError, match="resnet18"):
        build_backbone("resnet19", image_size=32)
    with pytest.raises(InputError, match="at least 8"):
        build_backbone("resnet8", image_size=7)
