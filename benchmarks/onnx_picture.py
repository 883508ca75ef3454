"""Picture of an exported graph in Netron: writes docs/netron.png.

    pip install netron    # and Debian's chromium and fonts-wqy-microhei
    python benchmarks/onnx_picture.py [--netron PYTHON] [--chromium PROGRAM]

LeNet-5 with weights of 16 values, 8 % of them left, is exported in form `codebook` and shown by Netron in a
browser without a window.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from onnx_networks import export_network, reduced

import nqformat
from nqconvert import export_onnx
from nqconvert.sources import load_source

PICTURE = Path(__file__).parent.parent / "docs" / "netron.png"
_SIZE = (560, 860)
_MILLISECONDS = 1_000_000
_SERVER = "import netron, sys; netron.start(sys.argv[1], int(sys.argv[2]), browse=False); netron.wait()"


def export_lenet(folder: Path) -> Path:
    """Export the network; return the path of the file."""
    original, file, target = (folder / name for name in ("original.onnx", "lenet.nqz", "lenet.onnx"))
    export_network("LeNet-5", original)
    source = load_source(original)
    tensors = {**reduced(source.tensors, density=0.08), **source.views}
    nqformat.save_file(tensors, file, graph=source.graph)
    export_onnx(file, target, form="codebook")
    return target


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_for(address: str, seconds: float = 30) -> None:
    """Wait until a server answers."""
    last = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            if time.monotonic() > last:
                raise
            time.sleep(0.2)


class _Entrance(http.server.BaseHTTPRequestHandler):
    """Sends the browser to Netron with the cookie by which that knows that its question was answered."""

    address = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Set-Cookie", "consent=1; Path=/")
        self.send_header("Location", self.address)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def entrance_to(address: str) -> Iterator[str]:
    """Serve redirections to an address; cookies of one host hold for all its ports."""
    handler = type("Entrance", (_Entrance,), {"address": address})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_address[1]}/"
        server.shutdown()


def take_picture(model: Path, netron: str, chromium: str, target: Path) -> None:
    """Show a model in Netron and write what the browser draws."""
    port = free_port()
    address = f"http://localhost:{port}/"
    command = [netron, "-c", _SERVER, str(model), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server, entrance_to(address) as entrance:
        try:
            wait_for(address)
            subprocess.run(
                [
                    chromium,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--hide-scrollbars",
                    f"--user-data-dir={model.parent / 'profile'}",
                    f"--window-size={_SIZE[0]},{_SIZE[1]}",
                    f"--virtual-time-budget={_MILLISECONDS}",
                    f"--screenshot={target}",
                    entrance,
                ],
                check=True,
                capture_output=True,
                timeout=120,
            )
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--netron", default=sys.executable, help="interpreter that has netron")
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--target", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        take_picture(export_lenet(Path(folder)), arguments.netron, arguments.chromium, arguments.target)
    print(f"{arguments.target}: {arguments.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
