"""From the log to the workers: lanes, a bounded window, watermark commits, dead letters. No Celery, no Redis.

`BridgeCore` is the whole decision logic without threads or time of its own: records and completions go in, batches and
offsets to commit come out. `Bridge` runs it; its polling thread is never blocked by anything else, so that ownership is
kept.
"""

from messaging.bridge.core import BridgeCore, BridgeLimits, Dead, Watermark
from messaging.bridge.dead_letters import DeadLetters, dead_letter
from messaging.bridge.runner import Bridge

__all__ = ["Bridge", "BridgeCore", "BridgeLimits", "Dead", "DeadLetters", "Watermark", "dead_letter"]
