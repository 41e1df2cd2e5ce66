"""A model zoo of quadratic networks: importing it makes timm know them.

In timm and torch, ``q`` often stands for *quantised*; here it stands for *quadratic*.

>>> import timm, torch
>>> timm.list_models("qresnet20*")  # doctest: +NORMALIZE_WHITESPACE
['qresnet20', 'qresnet20_compact', 'qresnet20_dense', 'qresnet20_rank1', 'qresnet20_rank2',
 'qresnet20_rank3', 'qresnet20_rank4', 'qresnet20_rezero', 'qresnet20_rms']
>>> model = timm.create_model("qresnet20")
>>> model(torch.randn(2, 3, 32, 32)).shape
torch.Size([2, 10])
"""

from qzoo.convert import convert_relinear_state_dict as convert_relinear_state_dict
from qzoo.errors import WeightsError as WeightsError
from qzoo.evaluation import evaluate as evaluate
from qzoo.evaluation import verify as verify
from qzoo.folder import save_weights as save_weights
from qzoo.models import DIQNN as DIQNN
from qzoo.models import CifarQResNet as CifarQResNet
from qzoo.provenance import Evaluation as Evaluation
from qzoo.provenance import Preprocessing as Preprocessing
from qzoo.provenance import Provenance as Provenance

__all__ = [
    "DIQNN",
    "CifarQResNet",
    "Evaluation",
    "Preprocessing",
    "Provenance",
    "WeightsError",
    "convert_relinear_state_dict",
    "evaluate",
    "save_weights",
    "verify",
]
