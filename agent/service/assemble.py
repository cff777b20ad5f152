"""Puts the stages together from a configuration: the one place that knows which class serves which setting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.alert.coincidence import CoincidenceJudge, blindness
from agent.alert.policy import Policy
from agent.alert.reporter import Reporter
from agent.config.sources import ArchiveConfig, FolderConfig, SeedLinkConfig, ShakeUdpConfig, SimulatorConfig
from agent.detect.envelope import Envelopes
from agent.detect.pipeline import Pipeline
from agent.errors import ConfigError, ModelError
from agent.inference import Classifier, LiveClassifier, NetworkClassifier, Timed, load, open_bundle
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.remote.slots import ModelSlots
from agent.types import Event, StationId

if TYPE_CHECKING:
    from agent.config.file import ClassifierConfig, Config, TunablesConfig
    from agent.detect.station import Output
    from agent.host.clock import MachineClock
    from agent.host.data_age import DataAges
    from agent.inference.tensorrt.switch import BackendStatus
    from agent.messages.payloads import Message
    from agent.sources import ProblemSink, Source
    from agent.types import SampleBlock

TENSORRT = "tensorrt"


@dataclass(frozen=True, slots=True)
class Fed:
    """What a packet, or the end of the data, led to: the pipeline's outputs, and the messages about them and about the
    site, in the order in which they are to be sent."""

    outputs: list[Output]
    messages: list[Message]


@dataclass(frozen=True, slots=True)
class Line:
    """The station's work from packet to message. ``fallbacks`` says why no earlier backend served at the start.

    ``feed`` every packet in the order of arrival, ``finish`` at the end. For one thread.
    """

    pipeline: Pipeline
    reporter: Reporter
    classifier: LiveClassifier
    fallbacks: list[str]
    timed: Timed
    """How long verdicts take."""
    envelopes: Envelopes | None = None
    """The minima and maxima of the seconds, where they are sent."""

    def feed(self, block: SampleBlock, received_ns: int) -> Fed:
        """Take one packet that came in at ``received_ns`` (host clock).

        Raises:
            DataError: the packet cannot be used; the next one may be.
        """
        outputs = self.pipeline.feed(block)
        station = self.pipeline.stations.get(block.stream.station)
        if station is None:
            return Fed(outputs, self._report(outputs, received_ns))
        reporter = self.reporter
        messages = reporter.overdue(station.id, station.time_ns, received_ns)
        messages += self._report(outputs, received_ns)
        messages += reporter.after(block, station.time_ns, received_ns, station.hearing)
        return Fed(outputs, messages if self.envelopes is None else messages + self.envelopes.feed(block))

    def finish(self, received_ns: int, *, cut: bool = False) -> Fed:
        """The data end here: close what is open, and wait for no station any more. With ``cut`` the agent is told to
        stop, and what is open goes on with its next run."""
        outputs = self.pipeline.flush()
        messages = self._report(outputs, received_ns, cut=cut)
        messages += self.reporter.finish(received_ns, cut=cut)
        return Fed(outputs, messages if self.envelopes is None else messages + self.envelopes.flush())

    def _report(self, outputs: list[Output], received_ns: int, *, cut: bool = False) -> list[Message]:
        return [
            message
            for output in outputs
            if isinstance(output, Event)
            for message in self.reporter.report(output, received_ns, cut=cut)
        ]

    def backend_status(self) -> BackendStatus:
        """Which backend serves at this moment, and why."""
        from agent.inference.tensorrt.switch import BackendStatus, SwitchingClassifier

        active = self.classifier.active
        if isinstance(active, SwitchingClassifier):
            return active.backend_status()
        return BackendStatus(active.backend, active.precision, tuple(self.fallbacks))

    def retune(self, tunables: TunablesConfig, received_ns: int) -> Fed:
        """Go on with other settings, between two packets; see ``Pipeline.retune``."""
        outputs = self.pipeline.retune(tunables.trigger, tunables.verdict.at_s)
        self.reporter.retune(tunables)
        return Fed(outputs, self._report(outputs, received_ns))

    def close(self) -> None:
        """End what runs beside the classifier."""
        self.classifier.close()


def open_classifier(settings: ClassifierConfig, state_dir: Path | None = None) -> tuple[Classifier, list[str]]:
    """The configured bundle on the first configured backend that passes its golden windows.

    TensorRT is made ready beside the work, and only for who says with ``state_dir`` where its engines are kept:
    recorded data give the same verdicts from beginning to end.

    Raises:
        ModelError: there is none.
    """
    path = settings.bundle or DEFAULT_BUNDLE
    at_once = [name for name in settings.backends if name != TENSORRT]
    classifier, fallbacks = load(path, at_once, settings.threads)
    if state_dir is None or TENSORRT not in settings.backends or not isinstance(classifier, NetworkClassifier):
        return classifier, fallbacks
    from agent.inference.tensorrt import engine_folder
    from agent.inference.tensorrt.fallback import EngineSettings
    from agent.inference.tensorrt.switch import SwitchingClassifier

    return SwitchingClassifier(
        classifier, open_bundle(path), EngineSettings(engine_folder(state_dir)), fallbacks
    ), fallbacks


def open_chosen(settings: ClassifierConfig, state_dir: Path | None) -> tuple[Classifier, list[str]]:
    """The remote model that was kept, else the one before it, else the configured one.

    Raises:
        ModelError: there is none.
    """
    reasons: list[str] = []
    for path in ModelSlots(state_dir / "models").serving() if state_dir is not None else ():
        try:
            classifier, fallbacks = open_classifier(settings.model_copy(update={"bundle": path}), state_dir)
        except ModelError as error:
            reasons.append(f"the remote model {path.name} cannot serve: {error.message}")
        else:
            return classifier, [*reasons, *fallbacks]
    classifier, fallbacks = open_classifier(settings, state_dir)
    return classifier, [*reasons, *fallbacks]


def build_line(
    tunables: TunablesConfig,
    settings: ClassifierConfig,
    prefix: str,
    *,
    exercise: bool = False,
    state_dir: Path | None = None,
    site: CoincidenceJudge | None = None,
    ages: DataAges | None = None,
    envelope: str | None = None,
) -> Line:
    """Everything between the source and the outbox; ``state_dir`` as for ``open_classifier``, ``site`` and ``ages`` as
    for ``Reporter``; ``envelope`` is the component whose minima and maxima are sent.

    Raises:
        ModelError: no backend serves the bundle.
    """
    opened, fallbacks = open_chosen(settings, state_dir)
    classifier = LiveClassifier(opened)
    timed = Timed(classifier)
    pipeline = Pipeline(tunables.trigger, tunables.verdict.at_s, timed, exercise=exercise)
    reporter = Reporter(Policy(tunables.policy), prefix, tunables.reporting.alert_expiry_s, site=site, ages=ages)
    envelopes = None if envelope is None else Envelopes(envelope, prefix, reporter.stamp, exercise=exercise)
    return Line(pipeline, reporter, classifier, fallbacks, timed, envelopes)


def open_site(config: Config) -> CoincidenceJudge | None:
    """What the stations of this agent have to do with each other; None if nothing."""
    if config.site.coincidence is None:
        return None
    station = StationId(config.station.network, config.station.station, "", "")
    return CoincidenceJudge(config.site.coincidence, station, blindness(config.tunables))


def open_source(config: Config, on_problem: ProblemSink, clock: MachineClock | None = None) -> Source:
    """The configured source; it is opened when its blocks are asked for. ``clock`` tells the age of data."""
    match config.source:
        case ArchiveConfig() as archive:
            from agent.sources.archive import ArchiveSource

            return ArchiveSource(archive.paths, archive.packet_s, archive.speed, on_problem=on_problem)
        case SeedLinkConfig() as seedlink:
            from agent.sources.seedlink.source import SeedLinkSource

            return SeedLinkSource(seedlink, config.state_dir, on_problem=on_problem)
        case FolderConfig() as folder:
            from agent.sources.folder import FolderSource

            return FolderSource(
                folder.paths,
                config.state_dir / "folder.sqlite3",
                backlog_s=folder.backlog_s,
                rescan_s=folder.rescan_s,
                timeout_s=folder.timeout_s,
                on_problem=on_problem,
                clock=clock,
            )
        case ShakeUdpConfig() as shake:
            from agent.sources.shake_udp import ShakeUdpSource

            own = {"network": config.station.network, "station": config.station.station}
            senders = tuple(one.model_copy(update=own | one.model_dump(exclude_none=True)) for one in shake.senders)
            return ShakeUdpSource(shake.model_copy(update={"senders": senders}), on_problem=on_problem)
        case SimulatorConfig() as simulator:
            from agent.sources.simulator import open_simulator

            return open_simulator(simulator, config.station.network, config.station.station)
    raise ConfigError(f"there is no source of kind {config.source.kind}", "talus docs configuration lists all kinds")


def is_recorded_once(config: Config) -> bool:
    """Whether what the source gave is the past after a restart; an archive or a simulation is played anew."""
    return not isinstance(config.source, (ArchiveConfig, SimulatorConfig))


def is_exercise(config: Config) -> bool:
    """Whether all that the source delivers is made up."""
    return isinstance(config.source, SimulatorConfig)
