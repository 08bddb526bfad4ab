"""Live servers for tests, each in a process of its own that can be killed: RTSP, MPEG-TS over TCP, HLS, motion JPEG.

Run as a script this file is the server; it sends an H.264 file in real time and begins again at its end, with times
that go on.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import io
import itertools
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
from av.bitstream import BitStreamFilterContext

# Small enough that key frames have to be cut into fragments.
RTP_PAYLOAD = 400
RTP_CLOCK = 90_000
RTP_START = 123_456_789
H264_SPS, H264_PPS, H264_FU_A = 7, 8, 28
# Per kind, the scheme and the end of its URL.
PLACES = {
    "rtsp": ("rtsp", "/camera"),
    "mpegts": ("tcp", ""),
    "hls": ("http", "/live.m3u8"),
    "mjpeg": ("http", "/video"),
}
# Segments of HLS that the playlist lists.
LISTED = 4


class LiveServer:
    """A server in its own process, on a port of 127.0.0.1 that it keeps when it is started again.

    Args:
        kind: "rtsp", "mpegts", "hls" or "mjpeg".
        path: the H.264 file that it sends; for HLS a folder is made beside it.
        login: "user:password" that an RTSP server asks for.
        stall_after: RTSP and MPEG-TS only: frames of a connection after which nothing more is sent.
        drop_after: frames of a connection after which it is closed; not for HLS.
        ends: HLS only: write everything at once and mark the end.
        count: HLS only: how often the file is repeated before the broadcast ends.
    """

    def __init__(self, kind: str, path: Path, **options):
        self.kind, self.path, self.options, self.port = kind, path, options, free_port()
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        login = f"{self.options['login']}@" if "login" in self.options else ""
        scheme, place = PLACES[self.kind]
        return f"{scheme}://{login}127.0.0.1:{self.port}{place}"

    def start(self, path: Path | None = None) -> None:
        """Starts it, with another file if given, and returns when it answers."""
        self.path = path or self.path
        options = [f"--{key.replace('_', '-')}={value}" for key, value in self.options.items()]
        command = [sys.executable, __file__, self.kind, str(self.port), str(self.path), *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """Ends it as a power cut would: SIGKILL, so that it says goodbye to nobody."""
        with self._process:
            self._process.kill()

    def __enter__(self) -> "LiveServer":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# What follows runs in the server's process.


class AccessUnit(NamedTuple):
    """One coded frame: when it is shown and sent, in seconds, and its NAL units."""

    shown: float
    sent: float
    nals: list[bytes]


def access_units(path: str) -> tuple[list[AccessUnit], float]:
    """The frames of an mp4 in order of decoding, the first sent at 0, and how long they last."""
    units = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        annex_b = BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in itertools.chain.from_iterable(annex_b.filter(p) for p in container.demux(stream) if p.size):
            nals = [nal.rstrip(b"\0") for nal in bytes(packet).replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")]
            base = float(stream.time_base)
            units.append(AccessUnit(packet.pts * base, packet.dts * base, [nal for nal in nals if nal]))
    step = units[1].sent - units[0].sent
    return [unit._replace(sent=i * step) for i, unit in enumerate(units)], len(units) * step


def rounds(duration: float, start: float, frames: int) -> Iterator[tuple[int, float, float]]:
    """For ever: the index of a frame, the seconds that have gone before its round; each when it is due."""
    for index in itertools.count():
        before = index // frames * duration
        due = start + before + index % frames * duration / frames
        time.sleep(max(0.0, due - time.monotonic()))
        yield index, before, due


class RtspConnection:
    """One client of the RTSP server, over interleaved TCP."""

    def __init__(self, client: socket.socket, arguments: argparse.Namespace):
        self.client, self.arguments = client, arguments
        self.units, self.duration = access_units(arguments.path)
        self.lock = threading.Lock()
        self.over = threading.Event()

    def serve(self) -> None:
        with self.client, self.client.makefile("rb") as reader, contextlib.suppress(OSError):
            while line := reader.readline():
                if line.startswith(b"$"):  # what the client reports about its reception, in binary
                    continue
                method, url, _ = line.decode("latin-1").split(" ", 2)
                fields = dict(field.decode().strip().split(": ", 1) for field in iter(reader.readline, b"\r\n"))
                self.answer(method, url, {name.lower(): value for name, value in fields.items()})
                if method == "PLAY":
                    threading.Thread(target=self.play, daemon=True).start()
                if method == "TEARDOWN":
                    break
        self.over.set()

    def answer(self, method: str, url: str, fields: dict[str, str]) -> None:
        status, body, extra = "200 OK", "", []
        login = self.arguments.login
        if login and fields.get("authorization") != "Basic " + base64.b64encode(login.encode()).decode():
            status, extra = "401 Unauthorized", ['WWW-Authenticate: Basic realm="test"']
        elif method == "OPTIONS":
            extra = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"]
        elif method == "DESCRIBE":
            body = self.description()
            extra = [f"Content-Base: {url}/", "Content-Type: application/sdp"]
        elif method == "SETUP" and "TCP" not in fields["transport"]:
            status = "461 Unsupported Transport"
        elif method == "SETUP":
            extra = ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1"]
        elif method == "PLAY":
            extra = [f"RTP-Info: url={url};seq=0;rtptime={RTP_START}", "Range: npt=0.000-"]
        head = [f"RTSP/1.0 {status}", f"CSeq: {fields['cseq']}", "Session: 1;timeout=60", *extra]
        head += [f"Content-Length: {len(body)}", "", body]
        with self.lock:
            self.client.sendall("\r\n".join(head).encode())

    def description(self) -> str:
        first = self.units[0].nals
        sets = [nal for kind in (H264_SPS, H264_PPS) for nal in first if nal[0] & 31 == kind]
        sprop = ",".join(base64.b64encode(nal).decode() for nal in sets)
        lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=StreamWorld", "c=IN IP4 0.0.0.0", "t=0 0", "a=control:*"]
        lines += ["m=video 0 RTP/AVP 96", "a=rtpmap:96 H264/90000", "a=control:track0"]
        lines += [f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sprop}", ""]
        return "\r\n".join(lines)

    def play(self) -> None:
        sequence = itertools.count()
        with contextlib.suppress(OSError):
            for index, before, _ in rounds(self.duration, time.monotonic(), len(self.units)):
                if index == self.arguments.stall_after:
                    return
                if index == self.arguments.drop_after or self.over.is_set():
                    break
                unit = self.units[index % len(self.units)]
                stamp = RTP_START + round((before + unit.shown) * RTP_CLOCK)
                for payload, last in rtp_payloads(unit.nals):
                    head = struct.pack(">BBHII", 0x80, 96 | last << 7, next(sequence) & 0xFFFF, stamp & 0xFFFFFFFF, 1)
                    with self.lock:
                        self.client.sendall(struct.pack(">cBH", b"$", 0, 12 + len(payload)) + head + payload)
            self.client.shutdown(socket.SHUT_RDWR)


def rtp_payloads(nals: list[bytes]) -> Iterator[tuple[bytes, bool]]:
    """A frame's NAL units as RTP payloads (RFC 6184): whole, or in fragments; and whether each ends the frame."""
    for nal in nals:
        if len(nal) <= RTP_PAYLOAD:
            yield nal, nal is nals[-1]
            continue
        indicator, kind, body = nal[0] & 0xE0 | H264_FU_A, nal[0] & 31, nal[1:]
        for start in range(0, len(body), RTP_PAYLOAD):
            ends = start + RTP_PAYLOAD >= len(body)
            head = bytes([indicator, (start == 0) << 7 | ends << 6 | kind])
            yield head + body[start : start + RTP_PAYLOAD], ends and nal is nals[-1]


def serve_connections(arguments: argparse.Namespace, serve: Callable[[socket.socket], None]) -> None:
    with socket.create_server(("127.0.0.1", arguments.port)) as server:
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()


def serve_mpegts(client: socket.socket, arguments: argparse.Namespace) -> None:
    """Sends MPEG-TS as an encoder does that pushes to a TCP address, with no word from the client."""
    with contextlib.suppress(OSError), client, client.makefile("wb", buffering=0) as file:
        with av.open(file, "w", format="mpegts", options={"flush_packets": "1"}) as output:
            remux(arguments, output, time.monotonic())
        if arguments.stall_after is not None:
            client.recv(1)  # the other side leaves


def remux(arguments: argparse.Namespace, output: av.container.OutputContainer, start: float) -> None:
    """Copies the file into another container in real time, again and again."""
    with av.open(arguments.path) as container:
        source = container.streams.video[0]
        packets = [packet for packet in container.demux(source) if packet.size]
        target = output.add_stream_from_template(source)
        duration = len(packets) * float(1 / source.average_rate)
        for index, before, _ in rounds(duration, start, len(packets)):
            if index in (arguments.stall_after, arguments.drop_after) or index == arguments.count * len(packets):
                return
            packet = packets[index % len(packets)]
            copy, shift = av.Packet(bytes(packet)), round(before / source.time_base)
            copy.pts, copy.dts, copy.duration = packet.pts + shift, packet.dts + shift, packet.duration
            copy.stream, copy.time_base, copy.is_keyframe = target, source.time_base, packet.is_keyframe
            output.mux_one(copy)


def serve_mjpeg(client: socket.socket, arguments: argparse.Namespace) -> None:
    """Answers as a cheap camera does: one JPEG after the other, without times."""
    with av.open(arguments.path) as container:
        images = [frame.to_image() for frame in container.decode(video=0)]
        duration = len(images) / float(container.streams.video[0].average_rate)
    with contextlib.suppress(OSError), client:
        client.recv(4096)
        client.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=next\r\n\r\n")
        for index, _, _ in rounds(duration, time.monotonic(), len(images)):
            if index == arguments.drop_after:
                return
            jpeg = io.BytesIO()
            images[index % len(images)].save(jpeg, "jpeg", quality=95)
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg.getvalue())}\r\n\r\n"
            client.sendall(head.encode() + jpeg.getvalue() + b"\r\n")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve_hls(arguments: argparse.Namespace) -> None:
    """Writes segments and their playlist into a folder that an HTTP server shows.

    A second of the past is there from the beginning for each segment that the playlist lists.
    """
    folder = Path(arguments.path).with_suffix(f".{random.getrandbits(32)}")
    folder.mkdir()
    past = 1e9 if arguments.ends else LISTED * 1.0
    options = {"hls_time": "1", "hls_list_size": "0" if arguments.ends else str(LISTED)}
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), handler)
    with av.open(str(folder / "live.m3u8"), "w", format="hls", options=options) as output:
        writer = threading.Thread(target=remux, args=(arguments, output, time.monotonic() - past), daemon=True)
        writer.start()
        if not arguments.ends:
            while not (folder / "live.m3u8").exists():
                time.sleep(0.01)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print("ready", flush=True)
        writer.join()
    if arguments.ends:
        print("ready", flush=True)
        server.serve_forever()
    threading.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--login")
    parser.add_argument("--stall-after", type=int)
    parser.add_argument("--drop-after", type=int)
    parser.add_argument("--ends", type=bool)
    parser.add_argument("--count", type=int, default=-1)
    arguments = parser.parse_args()
    # Nobody is left to end this process when the tests are killed: their end of its input then closes.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    if arguments.kind == "rtsp":
        serve_connections(arguments, lambda client: RtspConnection(client, arguments).serve())
    elif arguments.kind in ("mpegts", "mjpeg"):
        serve = {"mpegts": serve_mpegts, "mjpeg": serve_mjpeg}[arguments.kind]
        serve_connections(arguments, lambda client: serve(client, arguments))
    else:
        serve_hls(arguments)


if __name__ == "__main__":
    main()
