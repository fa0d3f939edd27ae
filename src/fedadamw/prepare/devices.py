"""Settings that contradict simulated devices, each as one line that says what to set."""

from fedadamw.engine.ranks import Team
from fedadamw.engine.robust import check_robust
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.section import Section
from fedadamw.validation import check


def check_devices(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if settings contradict a virtual clock. remote: the clients are Flower's nodes."""
    if experiment.devices is None:
        return
    t, f = experiment.training, experiment.federation
    check(not remote, "devices: Flower's nodes are real devices, which need no clock; leave out the section devices")
    privacy = experiment.privacy
    check(privacy is None, "devices: the account of privacy knows no clients that are away or lost; leave out one")
    check_robust(t.mean, t.byzantine, f.quorum_of(t.clients_per_round), "federation.quorum")
    _check_all_act(experiment.devices)


def _check_all_act(devices: DevicesSettings) -> None:
    """Raise InputError if a setting of `devices` is set that changes nothing beside the others."""
    speed, link, at = devices.speed, devices.link, devices.availability
    _check_acts(speed, "devices.speed.spread", "kind=log-normal", acts=speed.kind == "log-normal")
    linked = link.down_mbps is not None or link.up_mbps is not None
    _check_acts(link, "devices.link.spread", "down_mbps or up_mbps", acts=linked)
    _check_acts(at, "devices.availability.online", "kind=daily", acts=at.kind == "daily")
    _check_acts(at, "devices.availability.day_s", "kind=daily or trace", acts=at.kind != "always")


def _check_acts(section: Section, setting: str, needs: str, *, acts: bool) -> None:
    """Raise InputError if a setting that does not act has another value than its default."""
    name = setting.rpartition(".")[2]
    value, default = getattr(section, name), type(section).model_fields[name].default
    check(acts or value == default, f"{setting}={value} acts only with {needs}")


def check_one_process(experiment: Experiment, ranks: Team) -> None:
    """Raise InputError if several ranks would share a run with devices."""
    several = experiment.devices is not None and not ranks.alone
    check(not several, f"devices: {ranks.size} ranks; a run under a virtual clock is one process: leave out --ranks")
