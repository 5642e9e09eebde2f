"""Parameters that travel and parameters that stay: the paper's equations 13 and 14, and the honest ones."""

from __future__ import annotations

from dataclasses import dataclass

from ...fedproto.head import HeadSpec

BLIP_PARAMETERS = 247_414_076  # word embedding and output projection counted as two matrices
BLIP_TIED = 223_971_644
SLOW_PARAMETERS = 32_454_096
KD_STUDENT = 11_689_512  # ResNet-18, 1000 classes: two-dimensional
RESNET_3D_18 = 33_371_472
FLAMEST_INPUTS = 768 + 2048


def head_parameters(inputs: int, outputs: int, hidden: tuple[int, ...] = (512, 256)) -> int:
    """Parameters of the perceptron ``[inputs, *hidden, outputs]``: 1,573,889 for 2816 and 1."""
    return HeadSpec(inputs, outputs, hidden).parameters


def saving(whole: int, sent: int) -> float:
    """Share of ``whole`` parameters that need not be sent, 0 to 1."""
    return (whole - sent) / whole


@dataclass(frozen=True)
class Communication:
    """Eqs. 13 and 14 for a head with ``outputs`` classes; shares from 0 to 1."""

    outputs: int
    head: int
    bytes_fp32: int
    saved_against_full_model: float  # eq. 13
    saved_against_kd: float  # eq. 14, the printed two-dimensional ResNet-18
    saved_against_3d_student: float  # a 3-D ResNet-18, 33.4 M


def communication(outputs: int, *, frozen: int = BLIP_PARAMETERS + SLOW_PARAMETERS) -> Communication:
    """The paper's head has ``outputs`` 1 (99.4 % and 86.5 %); a classifier of K classes has K."""
    head = head_parameters(FLAMEST_INPUTS, outputs)
    return Communication(
        outputs,
        head,
        4 * head,
        saving(frozen + head, head),
        saving(KD_STUDENT, head),
        saving(RESNET_3D_18, head),
    )
