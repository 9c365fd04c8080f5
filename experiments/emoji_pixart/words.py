"""The text side of the embedded models: a word-level tokenizer and a T5 encoder of half a million parameters.

The tokenizer itself fills a prompt with the word `<none>`, so that every prompt is exactly eleven words and the end:
there is no padding, every mask is all ones, and nothing depends on how a pipeline treats masks (PixArt's hands one to
its transformer, Latte's cuts a single prompt by it and multiplies several by it). Only the empty prompt cannot be
filled, since an empty text is normalised to itself: it is the end and padding, which the text encoder does not look
at. PixArt's transformer does not look at it either; Latte's does, for it is given no mask.
"""

from qdit import compat as compat  # before diffusers and transformers, which import torchvision

# isort: split
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from qdit.dataset.captions import WORDS, base_emoji
from qdit.dataset.motion import PHRASES

PAD, END, UNKNOWN, NONE = "<pad>", "</s>", "<unk>", "<none>"
PAD_ID = 0
SEPARATORS = r"[^\w#*'’]+"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of all words of names and motions, in alphabetical order after the four special ones."""
    normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(SEPARATORS), " "),
            normalizers.Strip(),
            normalizers.Replace(Regex(r"\z"), f" {NONE}" * WORDS),
            normalizers.Replace(Regex(rf"^(?:\S+ ){{{WORDS - 1}}}\S+\K.*$"), ""),
        ]
    )
    split = pre_tokenizers.WhitespaceSplit()
    texts = [*base_emoji()[1], *PHRASES]
    words = {w for t in texts for w, _ in split.pre_tokenize_str(normalizer.normalize_str(t))} - {NONE}
    vocabulary = {word: index for index, word in enumerate([PAD, END, UNKNOWN, NONE, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=WORDS + 1
    )


def make_text_encoder(vocabulary: int) -> T5EncoderModel:
    """T5's encoder with 2 layers of width 128."""
    config = T5Config(
        **{"vocab_size": vocabulary, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4},
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)
