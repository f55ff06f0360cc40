"""Small tokenisers of the three kinds that published models have, and what the libraries of those kinds make of texts and prompts:
test/model/test_tokenizers.cpp and test_prompts.cpp must come to the same tokens.

    .venv-parity/bin/python test/golden/model/tokenizers/make_golden.py

- paligemma.model: SentencePiece as PaliGemma's is set: pad 0, end 1, begin 2, no blank before the text, line breaks and <locNNNN> as
  pieces of their own, digits apart, bytes for what is unknown. Unigram, so that both algorithms of the library are met.
- llama.model: SentencePiece as Llama 2's is set: unknown 0, begin 1, end 2, no padding, a blank before the text, BPE.
- tokenizer.json: byte-level BPE as SmolVLM2's is set.
- golden.json: texts with their tokens under each, and prompts. pi0.5's and SmolVLA's are worded by lerobot's own processors,
  OpenVLA-OFT's as RLinf words it (rlinf 0.3.0, models/embodiment/openvla_oft/rlinf/openvla_oft_action_model.py), with the blank that it appends.
"""
import io
import json
import pathlib
import random

import numpy as np
import sentencepiece
import torch
from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
from lerobot.processor import NewLineTaskProcessorStep
from lerobot.lerobot_types import TransitionKey
from lerobot.utils.constants import OBS_STATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

here = pathlib.Path(__file__).resolve().parent
chance = random.Random(11)

# ---- What they are trained on
verbs = "push lift turn pick place open close stack move slide grasp drop put take pull press rotate insert".split()
things = "cube bowl plate drawer red-block mug bottle handle box lid peg button door cabinet stove basket soup can".split()
colours = "red blue green yellow black white wooden silver alphabet left right top bottom middle".split()
places = "on the plate|into the basket|to the target|in the top drawer|on the stove|next to the mug|from the table|upright".split("|")
corpus = [f"{chance.choice(verbs)} the {chance.choice(colours)} {chance.choice(things)} {chance.choice(places)}" for _ in range(400)]
corpus += [f"In: What action should the robot take to {each}?\nOut: " for each in corpus[:100]]
corpus += [f"Task: {each}, State: {' '.join(str(chance.randrange(256)) for _ in range(8))};\nAction: " for each in corpus[:100]]
corpus += ["the robot doesn't know what it's for, they'll say we've seen it", "Café crème naïve Ångström façade", "мир и робот", "日本語 机器人"] * 3


def sentence_piece(name, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=0.9995, num_threads=1, minloglevel=2, **options)
    (here / name).write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


paligemma = sentence_piece("paligemma.model", model_type="unigram", vocab_size=390, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
                           add_dummy_prefix=False, user_defined_symbols=["\n", "<loc0000>", "<loc0001>"])
llama = sentence_piece("llama.model", model_type="bpe", vocab_size=460, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
                       add_dummy_prefix=True, allow_whitespace_only_pieces=True)
smol = Tokenizer(models.BPE(unk_token="<|endoftext|>"))
smol.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
smol.decoder = decoders.ByteLevel()
smol.train_from_iterator(corpus, trainers.BpeTrainer(
    vocab_size=480, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>", "<|im_start|>"], show_progress=False))
smol.add_special_tokens(["<image>", "<image><image>"])
smol.add_tokens([AddedToken("red cube", normalized=True), AddedToken("<row_1_col_1>", normalized=False)])
(here / "tokenizer.json").write_text(json.dumps(json.loads(smol.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n")

# ---- Texts
texts = ["", " ", "  ", "   ", "\n", "\n\n", " \n ", "\t", "\r\n", "a", " a", "a ", "  a  ", "a\nb", "a \n b", "a\n\n\nb", "a   b", "\u00a0", "a\u00a0b", "\u3000x\u3000", "\u2028", "\u0085y",
         "push the red cube", " Push The Red Cube ", "push_the_cube", "PUSH", "red cubes", "the red cube.", "don't", "DON'T", "it's they'll we've I'm he'd you're 't'll", "'s", "''s", " 's", "'", "'x", "rock'n'roll's",
         "0", "10", "255", "-1", "3.14159", "1,000,000", "a1b22c333", "1 2  3", " 12", "12 ", "x 1", "½ ² ⅷ ٣ 五 ௧", "0.5kg", "v2.0-rc1",
         "<s>", "</s>", "<unk>", "<pad>", "a</s>b", "<loc0000>", "x<loc0001> y", "<loc0002>", "<0x41>", "<|endoftext|>", "a<|im_start|>b", "<image>", "<image><image>", "<image><image><image>", " <image> ", "<row_1_col_1>red cube<image>red cube", "red cub", "<|endoftext", "Ġ", "Ċ", "▁", "a▁b", "▁▁ ▁",
         "Café", "Cafe\u0301", "naïve façade Ångström", "ß ẞ ŒUVRE", "İstanbul ıI", "мир и робот", "Ελλάδα σοφός", "ไทย", "हिन्दी", "العربية ١٢", "עברית", "日本語 机器人", "你好，世界！", "한국어", "ﬁ ﬂ", "𝔘𝔫𝔦", "😀", "👍🏽 ok", "🇺🇸❤️", "a😀b", "\u200b", "a\u200db", "\ufeffx", "\ufffd", "\U0010ffff", "\u0378", "\u0001\u007f",
         "!!!", " !", "?!.,;:", "a-b", "(a) [b] {c}", "...", "--- a", "#tag @you", "$5 €6 ¥7", "a/b\\c", "\"q\" 'q'", "…", "–—", "*", "=> ->", "`x`", "~", "^_^", "&amp;",
         "In: What action should the robot take to lift it?\nOut:", "In: What action should the robot take to lift it?\nOut: ", "Task: turn, State: 0 128 255;\nAction: ", "turn\n"]
fragments = [" ", "  ", "\n", "\t", "the", "Red", "cube", "'s", "'ll", "'", "7", "42", ".", ",", "!", "é", "ß", "日", "本", "😀", "\u0301", "\u00a0", "<image>", "<loc0000>", "red cube", "_", "-", "Ω", "٣", "½", "</s>", "a", "Z", "pick", "up", "drawer"]
while len(texts) < 400:
    texts.append("".join(chance.choice(fragments) for _ in range(chance.randrange(1, 9))))

# ---- Prompts
tasks = ["push the cube to the red target", " push_the\ncube ", "\tPut the RED bowl\u00a0on_the plate\n", "pick up 3 cans", "Lift É and Ω", "", "open it\n", "\x1fturn\u3000", "stack 'it'"]
single = np.float32
states = [[], [-1.0, 0.0, 1.0], [-3.0, -1.0000001, -0.99999994, -0.9921875, -0.99218756], [-1e-20, -0.0, 1e-20, 0.999, 0.9921875, 1.0000001, 7.5, 1e30, -1e30]]
states += [[float(single(chance.uniform(-1.2, 1.2))) for _ in range(8)] for _ in range(5)]
states = [[float(single(x)) for x in state] for state in states]


def worded_by_lerobot(step, task, state):
    out = step({TransitionKey.OBSERVATION: {OBS_STATE: torch.tensor([state])}, TransitionKey.COMPLEMENTARY_DATA: {"task": [task]}})
    return out[TransitionKey.COMPLEMENTARY_DATA]["task"][0]


prompts = {"pi05": [], "smolvla": [], "openvla_oft": []}
for i, task in enumerate(tasks):
    state = states[i]
    text = worded_by_lerobot(Pi05PrepareStateTokenizerProcessorStep(), task, state)
    prompts["pi05"].append({"task": task, "state": state, "text": text, "tokens": paligemma.encode(text, add_bos=True)})
    text = worded_by_lerobot(NewLineTaskProcessorStep(), task, state)
    prompts["smolvla"].append({"task": task, "state": [], "text": text, "tokens": smol.encode(text).ids})
    text = f"In: What action should the robot take to {task.lower()}?\nOut: "
    tokens, blank = llama.encode(text, add_bos=True), llama.piece_to_id("▁")
    prompts["openvla_oft"].append({"task": task, "state": [], "text": text, "tokens": tokens if tokens[-1] == blank else tokens + [blank]})

facts = {"paligemma.model": [paligemma.get_piece_size(), paligemma.bos_id(), paligemma.piece_to_id("▁")],
         "llama.model": [llama.get_piece_size(), llama.bos_id(), llama.piece_to_id("▁")], "tokenizer.json": [smol.get_vocab_size(), -1, -1]}
lines = [json.dumps([text, paligemma.encode(text), llama.encode(text), smol.encode(text).ids], separators=(",", ":")) for text in texts]
(here / "golden.json").write_text('{"facts":' + json.dumps(facts) + ',\n"texts":[\n' + ",\n".join(lines) + '],\n"prompts":' +
                                  json.dumps(prompts, separators=(",", ":")) + "}\n")
