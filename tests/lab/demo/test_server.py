"""The server under questions good and bad: who may ask, how much, in which form; and clients that break off."""

import http.client
import json
import socket
import threading
from contextlib import closing

import pytest

from torchadder.errors import UserError
from torchadder.lab.demo import Server
from torchadder.lab.demo import server as server_module
from torchadder.lab.demo.answers import Answers

PIXELS = bytes(range(196)) * 4
TYPE = "application/octet-stream"


class Counting:
    """In place of a program: it answers with the number of bright pixels, and fails where the first is bright."""

    shape = (1, 28, 28)

    def about(self):
        return {"file": "counting.tadder"}

    def __call__(self, content):
        if content[0] == 255:
            raise RuntimeError("no\nway")
        return {"bright": sum(byte > 127 for byte in content)}


def asked(server, method="POST", path="/classify", body=PIXELS, **headers):
    """Status, headers and parsed body of one request; a header that is None is left out."""
    sent = {"Host": server.url[7:-1], "Origin": server.url[:-1], "Content-Type": TYPE, "Content-Length": str(len(body))}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(*server.server_address, timeout=20)) as connection:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            for each in value if isinstance(value, list) else [value]:
                if each is not None:
                    connection.putheader(name, each)
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
    return response.status, dict(response.getheaders()), content


def raw(server, text):
    """All that comes back for what is sent as it is, until the server ends the connection."""
    with socket.create_connection(server.server_address, timeout=20) as client:
        client.sendall(text)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_answer_is_that_of_the_program(grey, programs):
    status, headers, content = asked(grey)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    expected = Answers(programs / "grey.tadder")(PIXELS)
    found = json.loads(content)
    assert found.keys() == expected.keys()
    assert (found["logits"], found["distances"]) == (expected["logits"], expected["distances"])
    status, _, content = asked(grey, "GET", "/program", b"")
    assert (status, json.loads(content)) == (200, Answers(programs / "grey.tadder").about())


@pytest.mark.parametrize("path", [*server_module.DOCUMENTS, "/program", "/?from=here"])
def test_documents_and_their_headers(serve, path):
    server = serve(Counting())
    status, headers, content = asked(server, "GET", path, b"", Origin=None)
    assert status == 200
    assert content
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Server"] == "torchadder"
    assert "Access-Control-Allow-Origin" not in headers
    status, bare, nothing = asked(server, "HEAD", path, b"", Origin=None)
    assert (status, bare["Content-Length"], nothing) == (200, str(len(content)), b"")


def test_localhost_is_a_name_of_it_too(serve):
    server = serve(Counting())
    place = f"localhost:{server.server_address[1]}"
    assert asked(server, Host=place, Origin=f"http://{place}")[0] == 200


REFUSED = [  # what is different about the request, status, words of the line
    (dict(Host="evil.example"), 403, "for nobody else"),
    (dict(Host="127.0.0.1"), 403, "for nobody else"),
    (dict(Host=None), 403, "for nobody else"),
    (dict(Host=["evil.example", "127.0.0.1"]), 403, "for nobody else"),
    (dict(method="GET", path="/", body=b"", Host="evil.example:80"), 403, "for nobody else"),
    (dict(Origin="http://evil.example"), 403, "only its own page may ask"),
    (dict(Origin="null"), 403, "only its own page may ask"),
    (dict(Origin=None), 403, "only its own page may ask"),
    (dict(Content_Length=None), 411, "says its Content-Length"),
    (dict(Transfer_Encoding="chunked"), 411, "says its Content-Length"),
    (dict(Content_Length="many"), 400, "is no number"),
    (dict(Content_Length="-1"), 400, "is no number"),
    (dict(Content_Length="+784"), 400, "is no number"),
    (dict(Content_Length="NaN"), 400, "is no number"),
    (dict(Content_Length=["784", "784"]), 400, "is no number"),
    (dict(body=b""), 400, "expected 784 bytes, got 0"),
    (dict(body=PIXELS[:-1]), 400, "expected 784 bytes, got 783"),
    (dict(body=PIXELS + b"0"), 413, "expected 784 bytes, one a pixel"),
    (dict(body=b"", Content_Length="1000000000000"), 413, "expected 784 bytes"),  # of which none is sent
    (dict(body=b"", Content_Length="9" * 5000), 413, "expected 784 bytes"),
    (dict(Content_Type="application/json"), 400, "expected application/octet-stream, got application/json"),
    (dict(Content_Type=None), 400, "expected application/octet-stream, got text/plain"),
    (dict(body=b"\xff" * 784), 500, "RuntimeError: no way"),
    (dict(path="/"), 405, "expected GET, HEAD"),
    (dict(path="/nowhere"), 404, "no such page"),
    (dict(path="/classify?x"), 405, "expected POST"),
    (dict(method="GET", body=b""), 405, "expected POST"),
    (dict(method="PUT", body=b""), 405, "expected POST"),
    (dict(method="DELETE", path="/demo.js", body=b""), 405, "expected GET, HEAD"),
    (dict(method="OPTIONS", body=b""), 405, "expected POST"),
    (dict(method="BREW", body=b""), 405, "expected POST"),
    (dict(method="PUT", path="/nowhere", body=b""), 404, "no such page"),
    (dict(method="GET", path="/../server.py", body=b""), 404, "no such page"),
    (dict(method="GET", path="/page/", body=b""), 404, "no such page"),
    (dict(method="GET", path="/%2e%2e/server.py", body=b""), 404, "no such page"),
    (dict(method="GET", path="//demo.js/..", body=b""), 404, "no such page"),
    (dict(method="GET", path="/" + "x" * 70_000, body=b""), 414, "Too Long"),
    (dict(method="GET", path="/", body=b"", X="x" * 70_000), 431, "Line too long"),
]


@pytest.mark.parametrize(("different", "status", "words"), REFUSED)
def test_refused_in_one_line_of_json_and_the_next_is_answered(serve, different, status, words, capfd):
    server = serve(Counting())
    found, headers, content = asked(server, **different)
    assert found == status
    assert headers["Content-Type"] == "application/json"
    assert words.lower() in json.loads(content)["error"].lower()
    assert content.count(b"\n") == 1
    assert headers["Connection"] == "close"
    if status == 405:
        assert headers["Allow"] in words
    assert json.loads(asked(server)[2]) == {"bright": 272}
    assert capfd.readouterr() == ("", "")


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9\r\n\r\n",
    b"\r\n\r\n",
    b"a b c d\r\n\r\n",
]


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage(serve, text, capfd):
    server = serve(Counting())
    raw(server, text)
    assert asked(server)[0] == 200
    assert capfd.readouterr() == ("", "")


def test_clients_that_stop_in_the_middle_block_nobody(serve, capfd):
    server = serve(Counting())
    head = f"POST /classify HTTP/1.1\r\nHost: {server.url[7:-1]}\r\nOrigin: {server.url[:-1]}\r\n"
    head += f"Content-Type: {TYPE}\r\nContent-Length: 784\r\n\r\n"
    silent = [socket.create_connection(server.server_address, timeout=20) for _ in range(4)]
    for client, part in zip(silent, ("", "POST /cl", head[:-2], head + "pixels"), strict=True):
        client.sendall(part.encode())
    assert asked(server)[0] == 200
    for client in silent:
        client.close()
    assert asked(server)[0] == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part", ["", "POST /cl", "POST /classify HTTP/1.1\r\nHost: {host}\r\n"])
def test_a_silent_client_is_hung_up_on(serve, monkeypatch, part):
    monkeypatch.setattr(server_module._Handler, "timeout", 0.05)
    server = serve(Counting())
    assert raw(server, part.format(host=server.url[7:-1]).encode()) == b""


def test_one_connection_carries_many_questions(serve):
    server = serve(Counting())
    headers = {"Host": server.url[7:-1], "Origin": server.url[:-1], "Content-Type": TYPE}
    with closing(http.client.HTTPConnection(*server.server_address, timeout=20)) as connection:
        for count in (3, 700):
            connection.request("POST", "/classify", bytes(784 - count) + b"\xf0" * count, headers)
            assert json.loads(connection.getresponse().read()) == {"bright": count}


def test_everybody_at_once_gets_the_answer_to_his_own_question(grey, programs):
    answers = Answers(programs / "grey.tadder")
    questions = [bytes([shade]) * 784 for shade in range(0, 240, 20)]
    expected = [answers(question)["logits"] for question in questions]
    found = {}

    def ask(number):
        for _ in range(5):
            found[number] = json.loads(asked(grey, body=questions[number])[2])["logits"]

    threads = [threading.Thread(target=ask, args=[number]) for number in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(questions))] == expected


def test_it_listens_on_this_machine_alone_and_a_taken_port_is_one_line(serve):
    server = serve(Counting())
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_address[1]
    with pytest.raises(UserError, match=rf"^cannot listen on port {port} \(Address already in use\): choose another"):
        Server(Counting(), port)
