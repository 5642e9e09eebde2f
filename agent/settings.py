"""``agent.toml``: all settings of the daemon, with their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from ..base.errors import SettingsError, UsageError
from ..base.files import write_atomic
from ..base.log import LogSettings
from ..base.settings import load_settings
from ..fedproto.tls import check_files
from ..runtime.backends.options import BackendOptions, parse_backend_options
from ..runtime.bundle.opening import open_bundle
from ..runtime.bundle.signature import TrustedKeys, is_key_text, read_trusted_keys
from ..runtime.devices import check_devices
from ..runtime.pipeline_options import MOST_ASKED, PipelineOptions
from ..runtime.video.decoder import DecodeLimits
from .egress.policy import Policy
from .extraction.aliases import LabelAliases, alias_problems
from .extraction.groups import ClipRules, GroupRule, pattern_problem
from .extraction.report import GB, MAX_CLIP_GB
from .handshake import ConnectionSettings, split_address

MAX_CLIP_TIMEOUT_S = 86400  # a day
MAX_PAUSE_S = 30 * 86400  # of rescan_s and idle_s
MAX_THREADS = 1024
PLACEHOLDER_HOST = "COORDINATOR"  # in the template


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strict and immutable record: an unknown key is an error."""


class Work(_Record, frozen=True):
    """[work] in agent.toml: settings of extraction and training."""

    threads: int | None = None  # cores for one task, 1 to 1024; not set: all that this process may use
    idle_s: float = 60.0  # seconds without a task after which the worker process ends; it is started again for the next
    rescan_s: float = 300.0  # seconds between two searches of the video folder for new clips, 0.1 or more
    backend: str = "auto"  # where the networks run, as --backend of extract, such as "openvino,text=onnxruntime"
    require_backend: bool = False  # a graph that does not run on the backend named is an error, not a fallback
    clip_timeout: float = DecodeLimits.timeout_s  # seconds that decoding one clip may take
    max_clip_gb: float = DecodeLimits.largest_file / GB  # video files of more than so many 10^9 bytes are not read
    # "bf16" computes an fp32 bundle in bf16, "auto" takes the fastest that gives the same features.
    precision: str | None = None
    # "cuda:0,cuda:1" or "all": a worker process for each GPU; "cpu": no GPU; "": the first GPU, if any
    device: str = ""
    readers: int | None = None  # processes that decode clips, 1 to 1024; not set: by cores and memory
    batch: int | None = None  # clips in one run of a network, 1 to 1024; not set: by the GPU's memory, 1 on a CPU
    captions: int | None = None  # captions generated at once, 1 to 1024; not set: by the GPU's memory, 4 on a CPU

    @property
    def backend_options(self) -> BackendOptions:
        """Parse the backend keys. Raises UsageError for unknown words."""
        return parse_backend_options((self.backend,), require=self.require_backend, precision=self.precision)

    def pipeline(self, *, readers: int | None = None, batch: int | None = None) -> PipelineOptions:
        """Concurrency of an extraction; the arguments come first."""
        return PipelineOptions(readers or self.readers, batch or self.batch, self.captions)

    @property
    def limits(self) -> DecodeLimits:
        """Limits of one clip."""
        return DecodeLimits(timeout_s=self.clip_timeout, largest_file=int(self.max_clip_gb * GB))


class Groups(_Record, frozen=True):
    """[groups] in agent.toml: the group of a clip whose row in labels.csv names no group and no person."""

    # "auto": the person or scene in the name; "name": the file's name; "folder": the folders other than the class's;
    # "suffix": the name without the number at its end; "pattern": by ``pattern``
    rule: Literal["auto", "name", "folder", "suffix", "pattern"] = "auto"
    pattern: str = ""  # of the rule "pattern": a regular expression with (?P<group>…), searched for in the clip's path


class Labels(_Record, frozen=True):
    """[labels] in agent.toml: which folder is a clip's class, and the run's words for this silo's labels."""

    folder: Literal["parent", "top"] = "parent"  # without a labels.csv: the clip's own folder, or the outermost
    alias: dict[str, str] = {}  # [labels.alias]: this silo's word = the run's class; the store keeps this silo's


class AgentSettings(_Record, frozen=True):
    """The whole file. Relative paths are relative to the file's folder."""

    state: Path  # folder of the daemon's own files: status, egress ledger, kept updates, last model
    store: Path  # the feature store, one file; extract fills it, training reads it
    coordinator: ConnectionSettings
    bundle: Path | None = None  # folder of the bundle that extracts features; needed with videos
    videos: Path | None = None  # folder of clips, watched for new ones; not set: trains on what the store holds
    precision: str | None = None  # of the features to train on; needed only where the store holds several
    trusted_keys: tuple[str, ...] = ()  # public key files, or ed25519:…; one of them must have signed the bundle
    policy: Policy = Policy()
    work: Work = Work()
    groups: Groups = Groups()
    labels: Labels = Labels()
    log: LogSettings = LogSettings()

    @property
    def rules(self) -> ClipRules:
        """Rules for groups and classes of the video folder."""
        return ClipRules(GroupRule(self.groups.rule, self.groups.pattern), self.labels.folder)

    @property
    def aliases(self) -> LabelAliases:
        """The run's classes by this silo's words."""
        return LabelAliases(self.labels.alias)

    def trust(self) -> TrustedKeys:
        """Read the keys of ``trusted_keys``; raises SettingsError for one that is not a key."""
        return read_trusted_keys(self.trusted_keys, where="trusted_keys")


TEMPLATE = """\
# Settings of flamest-agent on this silo. Relative paths start at this file's folder; a line after # is not in force.
# Check it with: flamest-agent run --config agent.toml --check-config

state = "state"               # the daemon's own files: its status, the egress ledger, the model in use
store = "features.sqlite"     # the feature store: the embeddings of this silo's clips
# precision = "fp32"          # of the embeddings to train on, where the store holds several

# With both the daemon extracts new clips by itself; without them it trains on what flamest-agent extract, or
# import-features, has put into the store.
# bundle = "bundle"           # the bundle of the run, from the operator
# videos = "videos"           # LABEL/clip.mp4, or a labels.csv
# trusted_keys = ["operator.pub"]  # a bundle that none of them signed is not opened (docs/guides/signing.md)

[coordinator]
address = "COORDINATOR:7443"  # TO FILL IN: its host and port, from the operator
ca = "ca.pem"                 # from the operator, with the certificate
certificate = "silo.pem"      # ends after a year: flamest-agent status says when
key = "{key}"

# [work]
# threads = 4                 # cores for one task; all of them when not set
# rescan_s = 300              # seconds between two searches of the video folder
# idle_s = 60                 # seconds without work after which the working process ends
# backend = "auto"            # where the networks run; flamest-agent doctor shows what this machine can
# require_backend = false     # true: a backend that falls back to another one is an error
# precision = "bf16"          # compute a bundle of fp32 in it; "auto": in the fastest
# device = "all"              # a worker process for each GPU; "cuda:1": that one; "cpu": none; not set: the first
# readers = 16                # processes that decode clips; not set: by cores and memory
# batch = 32                  # clips in one run of a network; not set: by the GPU's memory
# captions = 64               # captions generated at once; not set: by the GPU's memory
# max_clip_gb = 16            # larger video files are not read
# clip_timeout = 120          # seconds to decode a clip; with more, those that took too long are tried again

# Clips of a group are held out together. The rule for those whose labels.csv names none; flamest-agent clips shows it.
# [groups]
# rule = "auto"               # or "name", "folder", "suffix", "pattern" (docs/guides/labelling-files.md)
# pattern = '(?P<group>person[0-9]+)'  # of the rule "pattern", searched for in the clip's path

# [labels]
# folder = "top"              # the class is the outermost folder; not set: the folder that holds the clip
# [labels.alias]              # this silo's word = the run's class
# "Sturz" = "fall"

[log]                         # of the daemon, on stderr
# level = "info"              # or "debug", "warning", "error"; --log-level wins
# format = "logfmt"           # key=value words; "json": one object a line, for a log collector

# This silo's policy, which the run cannot change (docs/guides/privacy.md). flamest-agent egress shows what has left.
[policy]
min_samples = 256             # with fewer clips to train on an update could reveal them: it is not sent
# min_samples_override = true # allow less than these two floors; every update's entry in the ledger records it
# min_class_samples = 10      # clips of classes with fewer to train on are left out of updates
hold_out = 0.2                # share of groups kept from training, to evaluate on
# report_evaluation = false   # report loss and correct predictions on held-out clips; default: except with record-dp
# report_loss = "exact"       # losses in full precision; default: "rounded"
# report_loss_override = true # allow report_loss = "exact"
# evaluation_noise = 3        # clips: noise on what is reported; with less, reports can reveal held-out clips
# evaluations_per_day = 400   # report at most so many within 24 hours; updates go on without them
# evaluations_per_month = 1200  # and so many within 30 days
# report_classes = 10         # report by class too, for classes with so many held-out clips
# report_gain = true          # report how a head trained alone does, where the run asks (docs/guides/joining.md)
# share_for_evaluation = true # silos that share too may evaluate this silo's last model (docs/guides/evaluation.md)
# adopt = "auto"              # after a run: a head of its own, unless another is better (docs/guides/joining.md)
# refuse_worse = true         # without adopt: the last round's training where the final model is worse
# report_counts = "power-of-two"  # report clip counts as the nearest power of two
# codec = "fp32"              # send updates at least this exactly
# privacy = "clip"            # clip every update and add noise
# clip_norm = 1.0             # of clip: the most that an update may differ from the round's model
# noise = 0.001               # of clip: on every parameter, in units of clip_norm
# privacy = "record-dp"       # or: differential privacy for every clip
# epsilon = 8.0               # of record-dp: the budget of all runs together; training stops when it is spent
# delta = 1e-5                # of record-dp: probability with which epsilon may not hold
# sample_clip = 1.0           # of record-dp: the most that the gradient of one clip counts
# noise_multiplier = 1.0      # of record-dp: noise of a step, in units of sample_clip
"""


def write_settings_template(folder: Path, key: str) -> Path | None:
    """Write a first ``folder/agent.toml``; None, and nothing is changed, when there is one."""
    path = folder / "agent.toml"
    if path.exists():
        return None
    write_atomic(path, TEMPLATE.format(key=key).encode())
    return path


def load_agent_settings(path: Path, *, also_trusted: tuple[str, ...] = ()) -> AgentSettings:
    """Read and check ``agent.toml``; SettingsError names file, key and what was expected.

    ``also_trusted``: keys of the command line, added to those of the file.
    """
    settings = load_settings(path, AgentSettings, start="flamest-agent keygen NAME writes a first one")
    problems = [f"policy.{problem}" for problem in settings.policy.problems()]
    if settings.work.threads is not None and not 1 <= settings.work.threads <= MAX_THREADS:
        problems.append(f"work.threads: expected 1 to {MAX_THREADS}")
    if not 0 <= settings.work.idle_s <= MAX_PAUSE_S:
        problems.append(f"work.idle_s: expected 0 to {MAX_PAUSE_S} seconds")
    if not 0.1 <= settings.work.rescan_s <= MAX_PAUSE_S:
        problems.append(f"work.rescan_s: expected 0.1 to {MAX_PAUSE_S} seconds")
    if not 1 <= settings.work.clip_timeout <= MAX_CLIP_TIMEOUT_S:
        problems.append(f"work.clip_timeout: expected 1 to {MAX_CLIP_TIMEOUT_S} seconds")
    if not 0 < settings.work.max_clip_gb <= MAX_CLIP_GB:
        problems.append(f"work.max_clip_gb: expected more than 0, at most {MAX_CLIP_GB}")
    for name in ("readers", "batch", "captions"):
        if (count := getattr(settings.work, name)) is not None and not 1 <= count <= MOST_ASKED:
            problems.append(f"work.{name}: expected 1 to {MOST_ASKED}")
    if settings.groups.rule == "pattern" or settings.groups.pattern:
        problem = pattern_problem(settings.groups.pattern)
        if settings.groups.rule != "pattern":
            problem = f'needs rule = "pattern", rule is "{settings.groups.rule}"'
        problems += [f"groups.pattern: {problem}"] if problem else []
    problems += [f"labels.alias: {problem}" for problem in alias_problems(settings.labels.alias)]
    if settings.videos is not None and settings.bundle is None:
        problems.append("bundle: needed when videos is set")
    try:
        _ = settings.work.backend_options
        if settings.work.device:
            check_devices(settings.work.device)
    except UsageError as error:
        problems.append(f"work: {error.message}")
    if problems:
        raise SettingsError(
            f"{path}: " + "; ".join(problems), fix=f"edit {path}; docs/reference/agent-settings.md lists every key"
        )
    resolved = _resolve_paths(settings, Path(path).resolve().parent)
    resolved = msgspec.structs.replace(resolved, trusted_keys=(*resolved.trusted_keys, *also_trusted))
    resolved.trust()  # a key that cannot be read must not wait for the first new clip
    return resolved


def check_environment(settings: AgentSettings) -> None:
    """Check that address, key, certificates, bundle and videos of the settings exist and fit together.

    Every file of the bundle is hashed. Raises SettingsError, DataError or IdentityError for the first problem.
    """
    split_address(settings.coordinator.address)
    check_enrolled(settings.coordinator)
    check_files(settings.coordinator.files)
    check_inputs(settings)


def check_inputs(settings: AgentSettings) -> None:
    """Check that bundle, videos or else the store exist, and hash the bundle. Raises as ``check_environment``."""
    for name, folder in (("bundle", settings.bundle), ("videos", settings.videos)):
        if folder is not None and not folder.is_dir():
            raise SettingsError(
                f"{name}: {folder} is not a folder",
                fix=f"set {name} in agent.toml; a relative path starts at the folder of agent.toml",
            )
    if settings.bundle is not None:
        open_bundle(settings.bundle, settings.trust())
    if settings.videos is None and not settings.store.exists():
        raise SettingsError(
            f"store: there is no feature store at {settings.store}, and no videos are set to fill it from",
            fix="flamest-agent extract --bundle DIR --videos DIR --store FILE, or set bundle and videos",
        )


def check_enrolled(connection: ConnectionSettings) -> None:
    """Raise SettingsError for an address as the template has it, and for certificates that the operator has to send."""
    _refuse_placeholder(connection.address)
    if not connection.key.exists():
        raise SettingsError(
            f"{connection.key} is missing: flamest-agent keygen made it, next to the request for the certificate",
            fix="put it where agent.toml names it; if it is lost: flamest-agent keygen NAME --out DIR, and send the "
            "operator the new request",
        )
    for path in (connection.certificate, connection.ca):
        if not path.exists():
            raise SettingsError(
                f"{path} is missing: the coordinator's operator makes it from the request of flamest-agent keygen",
                fix="send the .csr file to the operator (flamest-coordinator silo add NAME --csr NAME.csr), and put "
                "silo.pem and ca.pem, which come back, where agent.toml names them",
            )


def _refuse_placeholder(address: str) -> None:
    if address.rpartition(":")[0] == PLACEHOLDER_HOST:
        raise SettingsError(
            f"coordinator.address is still '{address}', as keygen wrote it",
            fix='ask the coordinator\'s operator for host and port, and set them: address = "fl.example.org:7443"',
        )


def _resolve_paths(settings: AgentSettings, folder: Path) -> AgentSettings:
    """Resolve every relative path from the settings file's folder."""
    connection = settings.coordinator
    return msgspec.structs.replace(
        settings,
        state=folder / settings.state,
        store=folder / settings.store,
        bundle=folder / settings.bundle if settings.bundle else None,
        videos=folder / settings.videos if settings.videos else None,
        trusted_keys=tuple(key if is_key_text(key) else str(folder / key) for key in settings.trusted_keys),
        coordinator=msgspec.structs.replace(
            connection,
            ca=folder / connection.ca,
            certificate=folder / connection.certificate,
            key=folder / connection.key,
        ),
    )
