"""pi0.5: lerobot 0.6.1's PI05Pytorch at a small size, recorded for C++ to agree with.

    .venv-parity/bin/python test/golden/model/parity/pi05.py --seed 7 --layers 3 --width 80 OUT_FOLDER

Quirks of the reference that the record exercises (files of lerobot 0.6.1 under policies/, of Transformers 5.5.4 under models/):
- masked attention adds -2.3819763e38 and not -inf (common/vla_utils.py:99): a padded position, masked everywhere, gets a uniform softmax
  and not NaN; samples 1 and 2 are padded in images and in text, and their padded rows are recorded as the reference computes them;
- positions are cumsum(mask) - 1 (pi05/modeling_pi05.py:584), so those before the first valid token are -1: sample 2 lacks its first camera;
- the suffix's positions go on from the number of valid prefix tokens (pi05/modeling_pi05.py:689), not from the prefix's length;
- the first action token opens a block of its own, the others join it (pi05/modeling_pi05.py:558): actions see all, the prefix no action;
- norms are x (1 + w), variance and scale in float32 (pi_gemma.py:104, 119); those of the expert have no weight, but scale, shift and gate
  from the time (pi_gemma.py:126), and the gate of the last norm is dropped (pi05/modeling_pi05.py:378);
- the embedding scales text by sqrt(width), rounded to the embedding's dtype (gemma/modeling_gemma.py:61; openpi, pi0_pytorch.py:217, does not
  round it); images are not scaled; the tower ends with its norm and has no pooling head;
- time's frequencies are made in float64 (common/vla_utils.py:51), and time is 1 + k dt in double, then float32 (common/flow_matching.py:99);
  openpi adds dt in float32 (pi0_pytorch.py:419);
- heads are 8 whatever the configuration says (pi05/modeling_pi05.py:121);
- in bfloat16 the vision tower, the projector and all norms stay float32 (pi05/modeling_pi05.py:255), and so do the four projections of
  actions and time, which lie outside; openpi (gemma_pytorch.py:71) runs the tower in bfloat16;
- paligemma's lm_head is the embedding, stored once, the other name an alias in __metadata__ (layout openpi); gemma_expert.lm_head is dead.
Second way: the velocity over the prefix's cache against that of the joint pass; with --openpi=CHECKOUT also openpi's own code.
"""
import sys

from lerobot.policies.pi05 import modeling_pi05 as M
from lerobot.policies.pi05.configuration_pi05 import PI05Config

import common
import paligemma_expert

a = paligemma_expert.parser(__doc__.splitlines()[0]).parse_args()


def make(dtype):
    return M.PI05Pytorch(PI05Config(device="cpu", dtype=dtype, chunk_size=a.horizon, n_action_steps=a.horizon, max_action_dim=a.action, max_state_dim=a.action,
                                    image_resolution=(a.image, a.image), num_inference_steps=a.steps, tokenizer_max_length=a.text))


record, weights, aliases, gradient_names, beside = paligemma_expert.run(M, make, a, state=False)
common.write(a.folder, paligemma_expert.extents("pi05", a), weights, aliases, record, gradient_names, ("lerobot", "transformers"), a.store)
beside()
if a.openpi:
    sys.exit(paligemma_expert.openpi(a))
