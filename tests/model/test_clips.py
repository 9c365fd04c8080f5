"""Sizes of clips: those of the published pipelines, of a pipeline in memory, and those that cannot be."""

from types import SimpleNamespace

import pytest

from qdit.errors import UserError
from qdit.model.cogvideox import LoadedCogVideoX
from qdit.model.hunyuan_video import LoadedHunyuanVideo
from qdit.model.ltx import LoadedLTX
from qdit.model.wan import LoadedWan, LoadedWan22

PUBLISHED = {
    LoadedWan: (81, 480, 832),
    LoadedWan22: (121, 704, 1280),
    LoadedCogVideoX: (49, 480, 720),
    LoadedLTX: (161, 512, 704),
    LoadedHunyuanVideo: (129, 720, 1280),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_usual_latents_are_those_of_the_published_size(family):
    assert tuple(family.latent_size(*PUBLISHED[family], vae=None).values()) == family.usual


def test_clips_have_the_rate_at_which_their_family_s_are_shown():
    rates = {family: family.frames_per_second for family in PUBLISHED}
    assert rates == dict(zip(PUBLISHED, (16, 24, 8, 25, 15), strict=True))  # diffusers' examples; LTX's own call


def test_a_pipeline_in_memory_says_its_size_itself():
    class Pipe:
        config, vae = {"expand_timesteps": True}, SimpleNamespace(config=SimpleNamespace())

        def __call__(self, height=64, width=96, num_frames=9):
            pass

    about = Pipe.vae.config
    about.scale_factor_temporal, about.scale_factor_spatial = 4, 16
    assert LoadedWan.made_by(None, Pipe()) == {"frames": 3, "height": 4, "width": 6, "token_times": 1}
    about.patch_size, about.patch_size_t, about.spatio_temporal_scaling = 4, 1, [True, True, False]
    about.spatial_compression_ratio = about.temporal_compression_ratio = None
    assert LoadedLTX.made_by(None, Pipe()) == {"frames": 3, "height": 4, "width": 6}
    about.spatial_compression_ratio, about.temporal_compression_ratio = 32, 8
    assert LoadedLTX.made_by(None, Pipe()) == {"frames": 2, "height": 2, "width": 3}


def test_a_size_of_parts_of_tokens_is_refused():
    with pytest.raises(UserError, match=r"model.frames=82, .*; allowed: 4 n \+ 1 frames of multiples of 16 pixels"):
        LoadedWan.latent_size(82, 480, 832, None)
    with pytest.raises(UserError, match=r"model.width=704; allowed: 8 n \+ 1 frames of multiples of 32 pixels"):
        LoadedLTX.latent_size(161, 500, 704, None)
