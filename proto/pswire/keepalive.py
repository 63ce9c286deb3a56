"""How soon both ends of a gRPC connection notice that the other one has gone."""

_TIME_S = 10.0  # Without a word from the other end: then it is asked for one.
_TIMEOUT_S = 5.0  # For TCP's word that what was sent has come.


def options() -> tuple[tuple[str, int], ...]:
    """Return the options of a channel, and of a server, that say so.

    A machine that has vanished, or lost its network, does not close its connections:
    nothing shows it but that TCP is not told of what has come, so now and then there
    has to be something. The answer itself may take a minute, which is gRPC's own
    limit: on a slow link it comes behind megabytes.
    """
    time_ms, timeout_ms = int(_TIME_S * 1000), int(_TIMEOUT_S * 1000)
    return (
        ("grpc.keepalive_time_ms", time_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        # A worker that computes, and has no call in flight, can vanish too.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Else a server takes what it is asked so often for an attack.
        ("grpc.http2.min_ping_interval_without_data_ms", time_ms // 2),
    )
