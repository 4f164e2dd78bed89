"""An app whose storage is measured, for processes that are killed: a factory, and a command.

Everything comes from the environment: the folder (``FAULT_DIR``), any ``C2METER_`` key, how many
customers there are (``CUSTOMERS``), how many of them fail (``FAILING``), at which one this process
dies (``KILL_AT``), and the name of the host it believes to be on (``ON_HOST``).

``python -m storage_app`` measures once and prints, as JSON, the most memory it took.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator

from flask import Flask

from flask_c2meter import C2Meter, StorageMeasurement

if "ON_HOST" in os.environ:
    socket.gethostname = lambda: os.environ["ON_HOST"]


def create_app() -> Flask:
    app = Flask("storage_app", instance_path=os.environ["FAULT_DIR"])
    app.config.update({k: v for k, v in os.environ.items() if k.startswith("C2METER_")})
    meter = C2Meter(app)

    @meter.storage_loader
    def load(is_wanted: Callable[[str], bool]) -> Iterator[StorageMeasurement]:
        for number in range(int(os.environ["CUSTOMERS"])):
            if number == int(os.environ.get("KILL_AT", -1)):
                os.kill(os.getpid(), signal.SIGKILL)
            name = f"cus_{number:06}"
            if number < int(os.environ.get("FAILING", 0)):
                yield StorageMeasurement(name, error="the bucket is away")
            elif is_wanted(name):
                yield StorageMeasurement(name, evidence_gb="1.5", manifest_gb="0.0001")

    return app


if __name__ == "__main__":
    result = create_app().test_cli_runner().invoke(args=["c2meter", "measure-storage"])
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"exit_code": result.exit_code, "peak_kib": peak_kib}))
