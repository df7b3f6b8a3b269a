"""Test the classifier of the demo against the program, and the server with valid, refused and broken requests."""

import http.client
import json
import socket
import threading
from contextlib import closing

import pytest
import torch
import torch.nn.functional as F
from tests.lab.demo.conftest import NAMES

from torchadder.data.images import CENTRE
from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.lab.demo import DemoClassifier
from torchadder.lab.demo import server as server_module
from torchadder.quant import Program

PIXELS = bytes(range(196)) * 4
TYPE = "application/octet-stream"


def random_pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_logits_are_those_of_the_program_on_the_preprocessed_image(programs):
    classifier = DemoClassifier(programs / "grey.tadder")
    assert classifier.shape == (1, 28, 28)
    pixels = random_pixels(1, 28, 28)
    found = classifier.classify(pixels.numpy().tobytes())
    resized = F.interpolate(pixels[None].float(), (32, 32), mode="bilinear", antialias=True)
    program = Program.load(programs / "grey.tadder")
    assert torch.equal(torch.tensor(found["logits"]), program((resized / 255 - 0.1307) / 0.3081)[0])
    assert json.loads(json.dumps(found)) == found


def test_distances_are_the_accumulators_of_the_last_layer(programs):
    pixels = random_pixels(1, 28, 28)
    found = DemoClassifier(programs / "grey.tadder").classify(pixels.numpy().tobytes())
    program = Program.load(programs / "grey.tadder")
    resized = F.interpolate(pixels[None].float(), (32, 32), mode="bilinear", antialias=True)
    values = [program.quantize((resized / 255 - 0.1307) / 0.3081)]
    for step in program.steps[:-1]:
        values.append(step(values[-1]))
    weight = program.steps[-1].weight.flatten(1).int()
    features = values[-1].flatten().int()
    assert len(features) == 84
    assert found["distances"] == (features - weight).abs().sum(1).tolist()


def test_colour_images_and_no_distances_after_an_ordinary_layer(programs):
    classifier = DemoClassifier(programs / "colour.tadder")
    assert classifier.shape == (3, 12, 16)
    pixels = random_pixels(3, 12, 16)
    found = classifier.classify(pixels.numpy().tobytes())
    program = Program.load(programs / "colour.tadder")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]))
    assert torch.equal(torch.tensor(found["logits"]), program((pixels / 255 - mean)[None] / std)[0])
    assert found["distances"] is None


def test_description_for_the_page(programs, tmp_path):
    about = DemoClassifier(programs / "grey.tadder", threads=2).describe()
    assert about.pop("kernels")
    assert about.pop("milliseconds") > 0
    assert about == {
        "file": "grey.tadder",
        "about": ["lenet5bn", "adder", "mnist", "8 bits"],
        "pixels": [1, 28, 28],
        "input": [1, 32, 32],
        "crop": None,
        "names": [str(digit) for digit in range(10)],
        "last": "adder",
        "features": 84,
        "threads": 2,
    }
    about = DemoClassifier(programs / "colour.tadder").describe()
    assert (about["names"], about["last"], about["features"]) == (NAMES, "conv", 4 * 5 * 7)
    program, known = Program.load(programs / "colour.tadder"), Engine(programs / "colour.tadder").about
    program.save(tmp_path / "centre.tadder", about={**known, "part": "centre", "model": "m" * 1000})
    about = DemoClassifier(tmp_path / "centre.tadder").describe()
    assert (about["crop"], about["about"]) == (CENTRE, ["m" * 80])


def test_logits_that_are_not_finite_become_none(programs, tmp_path):
    program, about = Program.load(programs / "grey.tadder"), Engine(programs / "grey.tadder").about
    program.steps[-1].epilogue.scale[:2] = torch.tensor([torch.nan, 0.0])
    program.save(tmp_path / "odd.tadder", about=about)
    found = DemoClassifier(tmp_path / "odd.tadder").classify(bytes(784))
    assert found["logits"][0] is None
    assert found["distances"][:2] == [None, None]
    assert None not in found["distances"][2:]
    json.dumps(found, allow_nan=False)


def test_a_file_without_preprocessing_is_refused(programs, tmp_path):
    program, about = Program.load(programs / "grey.tadder"), Engine(programs / "grey.tadder").about
    program.save(tmp_path / "bare.tadder", about={"model": about["model"]})
    with pytest.raises(UserError, match=r"cannot tell from .*bare.tadder how to prepare an image"):
        DemoClassifier(tmp_path / "bare.tadder")


class Counting:
    """Stand in for a classifier: count the bright pixels, and fail if the first is 255."""

    shape = (1, 28, 28)

    def describe(self):
        return {"file": "counting.tadder"}

    def classify(self, content):
        if content[0] == 255:
            raise RuntimeError("no\nway")
        return {"bright": sum(byte > 127 for byte in content)}


def request(server, method="POST", path="/classify", body=PIXELS, **headers):
    """Send one request and return status, headers and body; a header that is None is left out."""
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
    """Send ``text`` unchanged and return everything until the server closes the connection."""
    with socket.create_connection(server.server_address, timeout=20) as client:
        client.sendall(text)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_response_is_that_of_the_classifier(grey, programs):
    status, headers, content = request(grey)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    expected = DemoClassifier(programs / "grey.tadder").classify(PIXELS)
    assert json.loads(content) == expected
    status, _, content = request(grey, "GET", "/program", b"")
    found, expected = json.loads(content), DemoClassifier(programs / "grey.tadder").describe()
    assert (status, {**found, "milliseconds": 0}) == (200, {**expected, "milliseconds": 0})


@pytest.mark.parametrize("path", [*server_module.DOCUMENTS, "/program", "/?from=here"])
def test_documents_and_their_headers(serve, path):
    server = serve(Counting())
    status, headers, content = request(server, "GET", path, b"", Origin=None)
    assert status == 200
    assert content
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Server"] == "torchadder"
    assert "Access-Control-Allow-Origin" not in headers
    status, bare, nothing = request(server, "HEAD", path, b"", Origin=None)
    assert (status, bare["Content-Length"], nothing) == (200, str(len(content)), b"")


def test_localhost_is_accepted_as_host(serve):
    server = serve(Counting())
    assert server.server_address[0] == "127.0.0.1"
    place = f"localhost:{server.server_address[1]}"
    assert request(server, Host=place, Origin=f"http://{place}")[0] == 200


REFUSED = [  # what is different about the request, status, words of the line
    (dict(Host="evil.example"), 403, "expected the Host header"),
    (dict(Host="127.0.0.1"), 403, "expected the Host header"),
    (dict(Host=None), 403, "expected the Host header"),
    (dict(Host=["evil.example", "127.0.0.1"]), 403, "expected the Host header"),
    (dict(method="GET", path="/", body=b"", Host="evil.example:80"), 403, "expected the Host header"),
    (dict(Origin="http://evil.example"), 403, "expected a request from the demo page"),
    (dict(Origin="null"), 403, "expected a request from the demo page"),
    (dict(Origin=None), 403, "expected a request from the demo page"),
    (dict(Content_Length=None), 411, "expected a Content-Length"),
    (dict(Transfer_Encoding="chunked"), 411, "expected a Content-Length"),
    (dict(Content_Length="many"), 400, "is not a number"),
    (dict(Content_Length="-1"), 400, "is not a number"),
    (dict(Content_Length="+784"), 400, "is not a number"),
    (dict(Content_Length="NaN"), 400, "is not a number"),
    (dict(Content_Length=["784", "784"]), 400, "is not a number"),
    (dict(body=b""), 400, "expected 784 bytes, got 0"),
    (dict(body=PIXELS[:-1]), 400, "expected 784 bytes, got 783"),
    (dict(body=PIXELS + b"0"), 413, "expected 784 bytes, one per pixel"),
    (dict(body=b"", Content_Length="1000000000000"), 413, "expected 784 bytes"),  # and no byte is sent
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
def test_a_refusal_is_one_line_of_json_and_the_next_request_works(serve, different, status, words, capfd):
    server = serve(Counting())
    found, headers, content = request(server, **different)
    assert found == status
    assert headers["Content-Type"] == "application/json"
    assert words.lower() in json.loads(content)["error"].lower()
    assert content.count(b"\n") == 1
    assert headers["Connection"] == "close"
    if status == 405:
        assert headers["Allow"] in words
    assert json.loads(request(server)[2]) == {"bright": 272}
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
    assert request(server)[0] == 200
    assert capfd.readouterr() == ("", "")


def test_clients_that_stop_in_the_middle_do_not_block_others(serve, capfd):
    server = serve(Counting())
    head = f"POST /classify HTTP/1.1\r\nHost: {server.url[7:-1]}\r\nOrigin: {server.url[:-1]}\r\n"
    head += f"Content-Type: {TYPE}\r\nContent-Length: 784\r\n\r\n"
    silent = [socket.create_connection(server.server_address, timeout=20) for _ in range(4)]
    for client, part in zip(silent, ("", "POST /cl", head[:-2], head + "pixels"), strict=True):
        client.sendall(part.encode())
    assert request(server)[0] == 200
    for client in silent:
        client.close()
    assert request(server)[0] == 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part", ["", "POST /cl", "POST /classify HTTP/1.1\r\nHost: {host}\r\n"])
def test_a_silent_client_is_disconnected(serve, monkeypatch, part):
    monkeypatch.setattr(server_module._Handler, "timeout", 0.05)
    server = serve(Counting())
    assert raw(server, part.format(host=server.url[7:-1]).encode()) == b""


def test_one_connection_carries_many_requests(serve):
    server = serve(Counting())
    headers = {"Host": server.url[7:-1], "Origin": server.url[:-1], "Content-Type": TYPE}
    with closing(http.client.HTTPConnection(*server.server_address, timeout=20)) as connection:
        for count in (3, 700):
            connection.request("POST", "/classify", bytes(784 - count) + b"\xf0" * count, headers)
            assert json.loads(connection.getresponse().read()) == {"bright": count}


def test_concurrent_requests_get_their_own_results(grey, programs):
    classifier = DemoClassifier(programs / "grey.tadder")
    inputs = [bytes([shade]) * 784 for shade in range(0, 240, 20)]
    expected = [classifier.classify(pixels)["logits"] for pixels in inputs]
    found = {}

    def send(number):
        for _ in range(5):
            found[number] = json.loads(request(grey, body=inputs[number])[2])["logits"]

    threads = [threading.Thread(target=send, args=[number]) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(inputs))] == expected
