"""pi0: lerobot 0.6.1's PI0Pytorch at a small size, recorded for C++ to agree with.

    .venv-parity/bin/python test/golden/model/parity/pi0.py --seed 7 --layers 3 --width 80 OUT_FOLDER

Quirks that the record exercises beside those of pi05.py (files of lerobot 0.6.1 under policies/):
- the expert's norms are plain ones, x (1 + w), as the prefix's; residuals have no gate;
- the state is the suffix's first token and a block of its own, which does not see the actions (pi0/modeling_pi0.py:548, 583);
- time joins each action token: a two-layer network over the two side by side, SiLU between, none behind (pi0/modeling_pi0.py:566);
- the velocity is read from the last `horizon` tokens.
Second way: the velocity over the prefix's cache against that of the joint pass; with --openpi=CHECKOUT also openpi's own code.
"""
import sys

from lerobot.policies.pi0 import modeling_pi0 as M
from lerobot.policies.pi0.configuration_pi0 import PI0Config

import common
import paligemma_expert

a = paligemma_expert.parser(__doc__.splitlines()[0]).parse_args()


def make(dtype):
    return M.PI0Pytorch(PI0Config(device="cpu", dtype=dtype, chunk_size=a.horizon, n_action_steps=a.horizon, max_action_dim=a.action, max_state_dim=a.action,
                                  image_resolution=(a.image, a.image), num_inference_steps=a.steps))


record, weights, aliases, gradient_names, beside = paligemma_expert.run(M, make, a, state=True)
common.write(a.folder, paligemma_expert.extents("pi0", a), weights, aliases, record, gradient_names, ("lerobot", "transformers"), a.store)
beside()
if a.openpi:
    sys.exit(paligemma_expert.openpi(a))
