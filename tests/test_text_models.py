"""The embedded text models: prompts become tokens the stock way, and what is trained is what the pipelines compute."""

from argparse import Namespace
from itertools import count

import pytest
import torch

pytest.importorskip("transformers")

# isort: split
from diffusers import AutoencoderKL, DiTTransformer2DModel, LattePipeline, PixArtAlphaPipeline
from transformers import AutoTokenizer

from experiments.emoji_dit.train import ASSETS, scheduler
from experiments.emoji_latte.train import stills_at
from experiments.emoji_pixart.fitting import fit, load_ema
from experiments.emoji_pixart.muon import Muon, orthogonal
from experiments.emoji_pixart.networks import (
    KEPT,
    TextModel,
    make_latte,
    make_pixart,
    sample,
    tokens,
    warm_latte,
    warm_pixart,
)
from experiments.emoji_pixart.reading import teach
from experiments.emoji_pixart.train import save
from experiments.emoji_pixart.words import make_text_encoder, make_tokenizer
from qdit.dataset.captions import base_emoji

PROMPTS = ["Rocket", "rocket moves up", "woman, man: a-b c d e f g h i j k", "zzz"]
CALL = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def network(make, tokenizer, seed=0):
    torch.manual_seed(seed)
    return TextModel(make(), len(tokenizer)).eval()


def saved(model, tokenizer, kind, folder):
    """The folder as it would ship, and the model that lies in it."""
    vae = AutoencoderKL.from_pretrained(ASSETS / "model" / "vae", torch_dtype=torch.float32)
    parts = {"vae": vae, "transformer": model.transformer, "text_encoder": model.text, "tokenizer": tokenizer}
    save(kind(scheduler=scheduler(), **parts), folder)
    loaded = kind.from_pretrained(folder, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded, model.float()


def test_every_prompt_is_eleven_words_and_the_end(tokenizer, tmp_path):
    ids = tokens(tokenizer, PROMPTS)
    assert ids.shape == (4, 12)
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
    assert (ids[:, :-1] > 1).all()  # neither padding nor an end
    assert tokenizer.decode(ids[1, :3]) == "rocket moves up"
    assert ids[3, 0] == tokenizer.unk_token_id
    assert tokens(tokenizer, [""]).tolist() == [[tokenizer.eos_token_id] + [tokenizer.pad_token_id] * 11]
    assert not (tokens(tokenizer, base_emoji()[1]) == tokenizer.unk_token_id).any()
    tokenizer.save_pretrained(tmp_path)
    assert (tokens(AutoTokenizer.from_pretrained(tmp_path), PROMPTS) == ids).all()


@pytest.mark.slow
def test_pixart_pipeline_gives_the_latents_of_the_trained_forward(tokenizer, tmp_path):
    pipeline, model = saved(network(make_pixart, tokenizer), tokenizer, PixArtAlphaPipeline, tmp_path)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 12, "latents": noise}
    found = pipeline(PROMPTS[:2], **given, **CALL).images
    wanted = sample(model, tokenizer, PROMPTS[:2], None, steps=2, guidance=3.0, precision=torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    longer = pipeline(PROMPTS[:2], **{**given, "max_sequence_length": 120}, **CALL).images
    torch.testing.assert_close(longer, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_latte_pipeline_gives_the_latents_of_the_trained_forward(tokenizer, tmp_path):
    pipeline, model = saved(network(make_latte, tokenizer), tokenizer, LattePipeline, tmp_path)
    noise = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    found = pipeline(PROMPTS[1], video_length=8, clean_caption=False, latents=noise, **CALL).frames
    wanted = sample(model, tokenizer, PROMPTS[1:2], 8, steps=2, guidance=3.0, precision=torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_latte_starts_as_six_blocks_of_the_image_model_on_every_frame_but_for_the_places_in_time(tokenizer):
    image, clip = network(make_pixart, tokenizer, 1), network(make_latte, tokenizer, 2)
    warm_latte(clip, image)
    image.transformer.transformer_blocks = torch.nn.ModuleList(image.transformer.transformer_blocks[i] for i in KEPT)
    clip.transformer.temp_pos_embed.zero_()  # diffusers adds it to what goes on, and not to the temporal blocks alone
    noisy, times, ids = torch.randn(2, 4, 8, 8, 8), torch.tensor([300, 700]), tokens(tokenizer, PROMPTS[:2])
    with torch.no_grad():
        frames = torch.stack([image(noisy[:, :, t], times, ids) for t in range(8)], 2)
        torch.testing.assert_close(clip(noisy, times, ids), frames, rtol=1e-4, atol=1e-4)


def test_a_still_lies_at_its_place_in_time(tokenizer):
    model = network(make_latte, tokenizer)
    for block in model.transformer.temporal_transformer_blocks:  # no frame sees another
        torch.nn.init.zeros_(block.attn1.to_out[0].weight)
    noisy, times, ids = torch.randn(1, 4, 8, 8, 8), torch.tensor([500, 500]), tokens(tokenizer, PROMPTS[1:2])
    places = torch.tensor([5, 0])
    stills = noisy[0, :, places].transpose(0, 1).unsqueeze(2)
    with torch.no_grad():
        whole = model(noisy, times[:1], ids)[0, :, places].transpose(0, 1)
        with stills_at(model.transformer, places):
            placed = model(stills, times, ids.expand(2, -1))[:, :, 0]
        torch.testing.assert_close(placed, whole, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(stills, times, ids.expand(2, -1))[:, :, 0], whole, atol=1e-2)


def test_a_clip_model_in_training_meets_both_forms_of_the_empty_prompt(tokenizer):
    model = network(make_latte, tokenizer)
    noisy, times = torch.randn(1, 4, 8, 8, 8).expand(2, -1, -1, -1, -1), torch.tensor([500, 500])
    ids = tokens(tokenizer, ["", ""])
    full = tokens(tokenizer, PROMPTS[:2])
    with torch.no_grad():
        asked, kept = model(noisy, times, ids), model(noisy, times, full)
        model.train()
        learned = model(noisy, times, ids)
        assert torch.equal(model(noisy, times, full), kept)  # a whole prompt has no padding
    assert torch.equal(learned[0], asked[0])
    assert not torch.allclose(learned[1], asked[1])


@pytest.mark.slow
def test_pixart_starts_near_the_model_of_classes():
    dit = DiTTransformer2DModel.from_pretrained(ASSETS / "model" / "transformer", torch_dtype=torch.float32)
    assert warm_pixart(make_pixart(), dit) > 0.85


def test_a_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    def args(steps, work):
        work.mkdir(exist_ok=True)
        common = {
            "lr": 1e-2,
            "muon_lr": 1e-2,
            "seed": 0,
            "log_every": 1,
            "save_every": 2,
            "save_minutes": 9.0,
            "compile": False,
        }
        return Namespace(steps=8, minutes=float("inf"), device="cpu", work=work, batch=1, stop=steps, **common)

    def run(stop, work):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)

        def loss_of(model, generator):
            if next(steps) == stop:
                raise KeyboardInterrupt
            return model(torch.randn(8, 4, generator=generator)).square().mean()

        steps = count()
        return fit(model, loss_of, args(stop, work), "m")

    whole = run(None, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(4, tmp_path / "b")
    sliced = run(None, tmp_path / "b")
    assert torch.equal(whole.weight, sliced.weight)
    assert load_ema(torch.nn.Linear(4, 4), tmp_path / "b" / "m.pt")[1] == 8


def test_the_text_encoder_learns_which_picture_a_caption_is(tokenizer):
    torch.manual_seed(0)
    ids, latents = tokens(tokenizer, base_emoji()[1][::200]), torch.randn(10, 256)
    shares, text = torch.full((10,), 0.1), make_text_encoder(len(tokenizer))
    assert teach(text, ids, latents, shares, 2) < 0.05
    assert teach(text, ids, latents, shares, 40) > 0.5


def test_muon_is_torchs_up_to_its_rounding():
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in ((48, 64), (64, 48), (48, 64))] for _ in "ab")
    made = Muon(ours, 1e-2), torch.optim.Muon(theirs, 1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in made:
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() / other.norm() < 0.02  # torch's works in bfloat16
    same = torch.nn.Parameter(torch.zeros(48, 64)), torch.nn.Parameter(torch.zeros(48, 64))
    for each, dtype in zip(same, (torch.float32, torch.bfloat16), strict=True):
        each.grad = ours[0].grad
        Muon([each], 1e-2, dtype=dtype).step()
    assert 0 < (same[0] - same[1]).norm() / same[0].norm() < 0.02
    values = torch.linalg.svdvals(orthogonal(torch.randn(2, 48, 64)))
    assert 0.6 < values.min() < values.max() < 1.3
