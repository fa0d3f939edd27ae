"""Serves a run's metrics to Prometheus."""

from types import TracebackType

from fedadamw.engine.evaluation import ClientScores
from fedadamw.engine.record import Record
from fedadamw.validation import InputError, check, missing_extra_error


class Monitor:
    """Serves metrics at http://host:port/metrics while the run lasts; nothing with port 0."""

    def __init__(self, port: int, host: str) -> None:
        self.port, self.host = port, host
        if not port:
            return
        check(0 < port < 2**16, f"metrics-port={port}: give 1 to 65535, or 0 for none")
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, start_http_server
        except ImportError:
            raise missing_extra_error(f"metrics-port={port} needs prometheus-client", "flower") from None
        registry = CollectorRegistry()
        self._round = Gauge("fedadamw_round", "Rounds done", registry=registry)
        self._online = Gauge("fedadamw_clients_online", "Clients that are online", registry=registry)
        self._loss = Gauge("fedadamw_train_loss", "Mean training loss of the last round", registry=registry)
        self._epsilon = Gauge("fedadamw_epsilon", "Largest epsilon of a client so far, with privacy", registry=registry)
        self._score = Gauge("fedadamw_score", "Last held-out score", ["metric"], registry=registry)
        self._spread = Gauge("fedadamw_clients_score", "Last main metric over nodes", ["statistic"], registry=registry)
        self._each = Gauge("fedadamw_client_score", "Last score of a node", ["client", "metric"], registry=registry)
        self._seconds = Summary("fedadamw_round_seconds", "Seconds a round took", registry=registry)
        self._bytes = Counter("fedadamw_sent_bytes", "Bytes sent, without headers", ["direction"], registry=registry)
        self._events = Counter("fedadamw_events", "What happened, as in events.jsonl", ["event"], registry=registry)
        try:
            self._server, _ = start_http_server(port, host, registry)
        except OSError as error:
            raise InputError(f"metrics-port={port}: {error}") from None

    def record_round(self, record: Record) -> None:
        """Update the metrics of a round."""
        if not self.port:
            return
        self._round.set(record.round)
        if record.train_loss is not None:
            self._loss.set(record.train_loss)
        if record.epsilon is not None:
            self._epsilon.set(record.epsilon)
        self._seconds.observe(record.wall_s)
        self._bytes.labels("up").inc(record.up_bytes)
        self._bytes.labels("down").inc(record.down_bytes)
        if record.test_metrics:
            name = next(iter(record.test_metrics))
            self._score.labels(name).set(record.test_metrics[name])

    def record_scores(self, scores: ClientScores) -> None:
        """Update the scores of nodes; those of a node that did not answer stay."""
        if not self.port:
            return
        for statistic, value in scores.summary().items():
            if isinstance(value, float):
                self._spread.labels(statistic.removeprefix("clients_")).set(value)
        for name, values in scores.columns.items():
            for client, value in zip(scores.clients, values, strict=True):
                self._each.labels(client, name).set(value)

    def count_event(self, name: str) -> None:
        """Count an event."""
        if self.port:
            self._events.labels(name).inc()

    def set_online(self, clients: int) -> None:
        """Set how many clients are online."""
        if self.port:
            self._online.set(clients)

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.port:
            self._server.shutdown()
            self._server.server_close()


NO_MONITOR = Monitor(0, "")
