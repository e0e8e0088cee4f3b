#!/usr/bin/env python3
"""The tokenizer of tests/golden/mlx_lm/llama_q4_g64, for the worked example of README and the docs: whole words, as many
as the model has tokens. Needs tokenizers.

Usage: python scripts/golden/mlx_lm_tokenizer.py tests/golden/mlx_lm/llama_q4_g64
"""
import sys
from pathlib import Path
from tokenizers import Tokenizer, models, pre_tokenizers

TEXT = """a about all and are as at be by can codes every file files first for from group has in is it its layer line
model mount name no not of on one or out quantized read reads row rows says scale scales shows small source system tensor
than that the then there they this to two under was weight weights what with"""
words = ["<unk>", *TEXT.split()]
assert len(words) == len(set(words)) == 64
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.save(str(Path(sys.argv[1]) / "tokenizer.json"), pretty=False)
