"""The largest difference between the sentence vectors of the example `sentence_embeddings` and of
transformers.

    python compare_sentence_embeddings.py MODEL_DIR SENTENCES VECTORS

SENTENCES has one sentence a line; VECTORS is what the example printed for it.
"""

import sys

import numpy as np
import torch
import transformers

directory, sentences, vectors = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
found = np.loadtxt(vectors, dtype=np.float32)
expected = []
with open(sentences, encoding="utf-8") as lines, torch.no_grad():
    for line in lines:
        tokens = tokenizer(line.rstrip("\n"), truncation=True, max_length=256, return_tensors="pt")
        mean = model(**tokens).last_hidden_state[0].mean(dim=0)
        expected.append((mean / mean.norm()).numpy())
expected = np.stack(expected)
assert found.shape == expected.shape, (found.shape, expected.shape)
cosines = (found.astype(np.float64) * expected).sum(axis=1)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"{len(found)} sentences, largest difference {np.abs(found - expected).max():.2e}")
print(f"smallest cosine {cosines.min():.9f}")
