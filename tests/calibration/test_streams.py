"""What a block returns as one tensor: how image and text are weighed against each other, and what a mask hides."""

import pytest
import torch
from helpers import text_models

from qdit.calibration.blocks import Walk, segments
from qdit.calibration.replay import Outputs
from qdit.calibration.streams import Streams, parts_of, row_shares
from qdit.rounding.reconstruction.targets import Targets
from qdit.storage.scratch import Scratch


def test_of_several_tensors_each_counts_relative_to_its_mean_square():
    output = (torch.randn(4, 3, 8), 100 * torch.randn(4, 6, 8), None)
    streams = Streams.relative(parts_of(output, 4), [None, None])
    wrong = (output[0] + 0.1, output[1] - 10.0, None)
    some = torch.tensor([2, 0])
    loss, half = (
        (
            streams.joined(tuple(x[n] for x in wrong[:2]), n) - streams.joined(tuple(x[n] for x in output[:2]), n)
        ).square()
        for n in (slice(0, 4), some)
    )
    expected = sum((a - b).square().mean() / b.square().mean() for a, b in zip(wrong[:2], output[:2], strict=True))
    torch.testing.assert_close(loss.mean(), expected)
    torch.testing.assert_close(half, loss[some])


def test_a_single_tensor_is_taken_as_it_is():
    output = torch.randn(12, 5, 8)
    assert Streams.relative(parts_of(output, 4), [None]).roots is None
    assert torch.equal(Streams().joined((output, None), slice(0, 4)), output.view(4, 3, 5, 8))


def test_rows_that_are_hidden_count_nothing_and_the_others_more():
    image, text = torch.randn(2, 5, 4), 7 * torch.randn(2, 3, 4)
    hidden = torch.tensor([[True, True, False], [True, False, False]])
    share = (hidden / hidden.float().mean()).unsqueeze(-1)
    streams, exact = Streams.relative([image, text], [None, share]), (image, text)
    wrong = (image, text + torch.where(hidden.unsqueeze(-1), 1.0, torch.randn(2, 3, 4) * 1e3))
    loss = (streams.joined(wrong, slice(0, 2)) - streams.joined(exact, slice(0, 2))).square().mean()
    torch.testing.assert_close(loss, 1 / text[hidden].square().mean())


@pytest.mark.parametrize("family", ["qwen_image", "hunyuan_video", "sd3"])
def test_what_behind_a_prompts_end_is_computed_does_not_move_the_error_of_a_block(family, tmp_path):
    """Noise in the rows of the text that a mask hides; without a mask nothing is hidden."""
    model = text_models.load(family, tmp_path)
    data = text_models.points(model, 3)
    parts = segments(model.sites(), {site.name for site in model.sites()})
    targets = Targets(model, data, parts, Scratch())
    targets.advance(parts[0], {})
    walk = Walk(model, data, parts)
    walk.advance(parts[0], {})
    walk.advance(parts[1], {})
    (outputs,) = walk.outputs.values()
    assert isinstance(outputs, Outputs)
    streams, target = targets._joined(outputs, None)
    exact = parts_of(outputs.leaves, 3)
    assert len(exact) == 2
    shares = [row_shares(model, data, part.shape[1]) for part in exact]
    masked = [n for n, share in enumerate(shares) if share is not None]
    assert len(masked) == (family != "sd3")
    for n in masked:
        moved = list(exact)
        moved[n] = torch.where(shares[n] > 0, exact[n], 100.0)
        assert (shares[n] == 0).any()
        assert not torch.equal(moved[n], exact[n])
        assert torch.equal(streams.joined(moved, slice(0, 3)), target)
