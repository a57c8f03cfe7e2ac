"""flashmix serve: this machine alone, reads alone, and nothing outside its folder."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time

import pytest

from bench_helpers import make_row
from flashmix.errors import ArgumentError
from flashmix.report.html.server import Server, find_runs
from report_helpers import EXPERIMENT, whole_run, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    secret = write_run(tmp_path_factory.mktemp("elsewhere") / "secret", whole_run())
    write_run(root / "a", whole_run())
    write_run(root / "deep" / "b & <c>", whole_run()[:8])
    write_run(root / "broken", [{"label": "x"}])
    (root / "link").symlink_to(secret)
    (root / "half").mkdir()
    (root / "half" / "run.json").write_text('{"suite": "quick"}')
    (root / "half" / "results.jsonl").symlink_to(secret / "results.jsonl")
    return root


@contextlib.contextmanager
def serving(folder, **options):
    with Server(folder, **options) as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as one:
        yield one


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer, text


def test_it_listens_on_the_loopback_address_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_runs_are_found_at_any_depth_but_not_through_links(folder):
    assert list(find_runs(folder)) == ["a", "broken", "deep/b & <c>", "half"]


def test_the_list_names_every_run_and_escapes(server):
    answer, text = ask(server, "/")
    assert answer.status == 200
    assert "deep/b &amp; &lt;c&gt;" in text
    assert "<c>" not in text


def test_a_run_is_shown(server):
    answer, text = ask(server, "/runs?run=a")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Findings" in text


def test_any_two_runs_are_compared(server):
    answer, text = ask(server, "/runs?run=a&run=deep%2Fb+%26+%3Cc%3E")
    assert answer.status == 200
    assert "2 runs side by side" in text


@pytest.mark.parametrize(
    "path",
    [
        "/runs?run=../elsewhere/secret",
        "/runs?run=..%2F..%2Fetc",
        "/runs?run=/etc",
        "/runs?run=link",
        "/runs?run=a/../a",
        "/runs?run=a%00",
        "/a/results.jsonl",
        "/../../etc/passwd",
        "/runs/a",
    ],
)
def test_nothing_but_the_runs_is_served(server, path):
    answer, text = ask(server, path)
    assert answer.status == 404
    assert "root:" not in text


def test_no_run_chosen_says_what_to_do(server):
    assert ask(server, "/runs")[0].status == 400


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(server, method):
    assert ask(server, "/runs?run=a", method)[0].status == 501


def test_head_has_no_body(server):
    answer, text = ask(server, "/", "HEAD")
    assert (answer.status, text) == (200, "")
    assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_name_for_this_machine_is_refused(server, host):
    assert ask(server, "/", Host=host)[0].status == 403


def test_a_broken_run_is_told_and_the_others_served(server):
    answer, text = ask(server, "/runs?run=broken")
    assert answer.status == 500
    assert text.startswith("cannot show broken")
    assert ask(server, "/runs?run=a")[0].status == 200


def test_a_page_is_made_anew_when_its_rows_grow(server, folder):
    run = write_run(folder / "growing", whole_run()[:8])
    assert "topk" not in ask(server, "/runs?run=growing")[1].split("<script")[0]
    rows = [*whole_run()[:8], make_row("topk", 128)]
    write_run(run, rows)
    assert "topk" in ask(server, "/runs?run=growing")[1]


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="is not a folder"):
        Server(tmp_path / "nothing")


@pytest.mark.parametrize(
    "file", ["run.json", "results.jsonl", "repeats.jsonl", "search.jsonl", "examples.json"]
)
def test_no_file_of_a_run_is_read_through_a_link(tmp_path, file):
    experiment = {**EXPERIMENT, "rates": [1e-3]}
    run = write_run(tmp_path / "runs" / "a", [], suite="finetune", experiment=experiment)
    if file == "repeats.jsonl":
        run = write_run(tmp_path / "runs" / "a", whole_run())
    (tmp_path / "secret").write_text("secret")
    (run / file).unlink(missing_ok=True)
    (run / file).symlink_to(tmp_path / "secret")
    with serving(tmp_path / "runs") as server:
        for path in ("/", "/runs?run=a"):
            text = ask(server, path)[1]
            assert "it is a link" in text
            assert "secret" not in text


def test_a_broken_run_is_in_the_list_with_its_sentence_beside_the_others(server):
    _, text = ask(server, "/")
    assert "broken/results.jsonl, line 1: suite is missing" in text
    assert "half/results.jsonl: it is a link" in text
    assert "quick on a processor" in text


def test_a_client_that_says_nothing_or_a_byte_at_a_time_is_dropped(tmp_path):
    with serving(tmp_path, seconds=0.5) as server:
        silent, slow = (socket.create_connection(server.server_address) for _ in range(2))
        with silent, slow:
            for one in (silent, slow):
                one.settimeout(20)
            start = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() < start + 20:
                    slow.sendall(b"G")
                    time.sleep(0.1)
            assert silent.recv(1) == b""
        assert ask(server, "/")[0].status == 200


def test_many_clients_at_once_are_answered(tmp_path):
    with serving(tmp_path) as server, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(server.server_address, timeout=60))
            for _ in range(150)
        ]
        for one in clients:
            one.sendall(b"HEAD / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert all(one.recv(12) == b"HTTP/1.0 200" for one in clients)


def test_a_client_that_hangs_up_prints_nothing(tmp_path, capfd):
    write_run(tmp_path / "a", whole_run())
    with serving(tmp_path) as server:
        for request in (b"", b"GE", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            client = socket.create_connection(server.server_address)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(request)
            client.close()  # with a reset
        assert ask(server, "/")[0].status == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("path", ["http://[", "//[", "/runs?run=%ff%00%1b", "/%2e%2e/%2e%2e/etc"])
def test_a_strange_address_is_no_page(server, path):
    with socket.create_connection(server.server_address, timeout=60) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.0 404"
