"""The official client of OpenAI against a server of its own process: what it gets is what a pipeline draws."""

import base64
import contextlib
import io
import signal
import socket
import threading

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from engines.bundle.manifest import MANIFEST
from engines.draw.pipeline import Pipeline
from engines.pictures.images import read_picture_text
from tests.serving import eventually, pixels, serving

pytestmark = pytest.mark.slow
LAST = 6  # scale of the demo


@pytest.fixture(scope="module")
def pipeline(bundles):
    with Pipeline.load(bundles[0], check="never", threads=1) as found:
        yield found


def test_images_are_those_of_a_pipeline(client, pipeline, tmp_path):
    response = client.images.generate(prompt="pizza", n=3, extra_body={"seed": 5, "cfg": 2.0, "top_k": 9})
    wanted = pipeline.generate("pizza", seeds=[5, 6, 7], cfg=2.0, top_k=9)
    assert response.size == "64x64"
    assert response.output_format == "png"
    assert response.usage.output_tokens == 3 * pipeline.config.num_tokens
    for place, datum in enumerate(response.data):
        np.testing.assert_array_equal(pixels(datum), wanted.images[place])
        assert datum.model_extra == {"seed": 5 + place, "class": 112, "label": "pizza"}
    file = tmp_path / "x.png"
    file.write_bytes(base64.b64decode(response.data[0].b64_json))
    assert read_picture_text(file)["seed"] == "5"


def test_more_images_than_a_batch(bundles, pipeline):
    with serving(bundles[0], "--max-batch", 2, "--check", "never") as (_, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        response = client.images.generate(prompt="88", n=5, extra_body={"seed": 1})
    wanted = pipeline.generate(88, seeds=[1, 2, 3, 4, 5])
    for datum, image in zip(response.data, wanted.images, strict=True):
        np.testing.assert_array_equal(pixels(datum), image)


@pytest.mark.parametrize("prompt", ["none", "NONE", "88", "", "alien"])
def test_prompts_are_classes(client, prompt):
    assert len(client.images.generate(prompt=prompt).data) == 1


def test_without_a_seed_images_differ_and_the_seed_is_told(client):
    one, two = (client.images.generate(prompt="88").data[0] for _ in range(2))
    assert one.seed != two.seed
    again = client.images.generate(prompt="88", extra_body={"seed": one.seed}).data[0]
    assert again.b64_json == one.b64_json


@pytest.mark.parametrize(("name", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats(client, name, kind):
    large, small = (
        base64.b64decode(
            client.images.generate(prompt="88", output_format=name, output_compression=quality, extra_body={"seed": 1})
            .data[0]
            .b64_json
        )
        for quality in (100, 20)
    )
    assert Image.open(io.BytesIO(large)).format == kind
    assert (len(small) < len(large)) is (kind != "PNG")


@pytest.mark.parametrize(
    ("asked", "scales"),
    [
        ({"partial_images": 0}, []),
        ({"partial_images": 1}, [3]),
        ({"partial_images": 2}, [1, 4]),
        ({"partial_images": 6}, [0, 1, 2, 3, 4, 5]),
        ({"extra_body": {"preview_scales": [0, 3, 3]}}, [0, 3]),
    ],
)
def test_a_stream_shows_scales_and_ends_with_the_image(client, pipeline, asked, scales):
    extra = {"seed": 3, **asked.pop("extra_body", {})}
    events = list(client.images.generate(prompt="88", stream=True, extra_body=extra, **asked))
    assert [event.type for event in events[:-1]] == ["image_generation.partial_image"] * len(scales)
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(scales)))
    assert [event.scale for event in events] == [*scales, LAST]
    assert events[-1].type == "image_generation.completed"
    assert events[-1].usage.output_tokens == pipeline.config.num_tokens
    drawn = {p.scale: p.images[0] for p in pipeline.stream(88, seeds=3, preview_scales=scales)}
    for event in events:
        np.testing.assert_array_equal(pixels(event), drawn[event.scale])


def picture_and_mask(tmp_path, pipeline):
    drawn = pipeline.generate(88, seeds=1).images[0]
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    Image.fromarray(drawn).save(image)
    area = np.zeros((64, 64), bool)
    area[:, 32:] = True
    Image.fromarray(np.dstack([drawn, np.where(area, 0, 255).astype(np.uint8)])).save(mask)
    return drawn, area, image, mask


def test_an_edit_is_that_of_a_pipeline(client, pipeline, tmp_path):
    drawn, area, image, mask = picture_and_mask(tmp_path, pipeline)
    wanted = pipeline.edit(drawn, area, 12, seeds=[4, 5]).images
    extra = {"seed": 4}
    masked = client.images.edit(image=image.open("rb"), mask=mask.open("rb"), prompt="12", n=2, extra_body=extra)
    clear = client.images.edit(image=mask.open("rb"), prompt="12", n=2, extra_body=extra)
    parts = [["32,0,64,64"], ["32,0,48,64", "0.75,0,1,1"], '["32,0,64,64"]']  # as the client sends lists, and as JSON
    boxed = [
        client.images.edit(image=image.open("rb"), prompt="12", n=2, extra_body=extra | {"boxes": boxes})
        for boxes in parts
    ]
    for response in (masked, *boxed):
        for datum, expected in zip(response.data, wanted, strict=True):
            np.testing.assert_array_equal(pixels(datum), expected)
    assert len(clear.data) == 2
    events = list(
        client.images.edit(
            image=image.open("rb"), mask=mask.open("rb"), prompt="12", stream=True, partial_images=1, extra_body=extra
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    np.testing.assert_array_equal(pixels(events[-1]), wanted[0])


def test_edits_that_cannot_be(client, pipeline, tmp_path):
    _, _, image, mask = picture_and_mask(tmp_path, pipeline)
    small = tmp_path / "small.png"
    Image.open(mask).resize((32, 32)).save(small)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for files, extra, says in [
        ({"image": image}, {}, "nothing is to be redrawn"),
        ({"image": image, "mask": image}, {}, "no transparent part"),
        ({"image": image, "mask": small}, {}, "32x32 pixels, the image 64x64"),
        ({"image": text, "mask": mask}, {}, "cannot read image"),
        ({"image": image}, {"boxes": '["1,2,3"]'}, "is not four numbers"),
        ({"image": image}, {"boxes": "5"}, "boxes"),
        ({"image": image}, {"fit": "wide"}, "fit is wrong"),
    ]:
        opened = {name: file.open("rb") for name, file in files.items()}
        with pytest.raises(openai.BadRequestError, match=says):
            client.images.edit(prompt="12", extra_body=extra, **opened)


def test_models_and_classes(client, server):
    assert [model.id for model in client.models.list()] == ["demo-fp32", "demo-int8"]
    assert client.models.retrieve("demo-int8").precision == "int8"
    one, two = (
        client.images.generate(prompt="88", model=f"demo-{name}", extra_body={"seed": 1}) for name in ("fp32", "int8")
    )
    assert one.data[0].b64_json != two.data[0].b64_json
    with pytest.raises(openai.NotFoundError, match="demo-fp32, demo-int8") as raised:
        client.images.generate(prompt="88", model="dall-e-3")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    found = httpx.get(f"{server}/v1/classes", params={"query": "PIZ"}).json()
    assert found["data"] == [{"index": 112, "label": "pizza"}]
    assert len(httpx.get(f"{server}/v1/classes").json()["data"]) == 171


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"prompt": "nonsense"}, "prompt"),
        ({"prompt": "0-9"}, "prompt"),
        ({"prompt": "all"}, "prompt"),
        ({"prompt": "171"}, "prompt"),
        ({"prompt": "1", "size": "1024x1024"}, "size"),
        ({"prompt": "1", "n": 11}, "n"),
        ({"prompt": "1", "response_format": "url"}, "response_format"),
        ({"prompt": "1", "stream": True, "partial_images": 7}, "partial_images"),
        ({"prompt": "1", "extra_body": {"cfg": -1}}, "cfg"),
        ({"prompt": "1", "extra_body": {"smooth": True}}, None),
        ({"prompt": "1", "extra_body": {"seed": -1}}, "seed"),
        ({"prompt": "1", "extra_body": {"seeds": 3}}, None),
        ({"prompt": "1", "stream": True, "extra_body": {"preview_scales": [9]}}, "preview_scales"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_wrong_requests_say_what_is_wrong(client, asked, param):
    with pytest.raises(openai.BadRequestError) as raised:
        list(client.images.generate(**asked))
    error = raised.value
    assert (error.type, error.param) == ("invalid_request_error", param)
    assert "Traceback" not in error.message
    assert "/" not in error.message.replace("/v1/classes", "")
    assert "`" not in error.message


def test_fields_without_a_value_are_as_not_given(client):
    asked = {"n": None, "size": None, "output_format": None, "partial_images": None, "model": None}
    assert len(client.images.generate(prompt="88", **asked).data) == 1


def test_what_is_no_request(server):
    for body in (b"", b"{", b"[]", b"5", b'{"prompt": "' + b"x" * 99, b"\xff\xfe\x00"):
        answer = httpx.post(f"{server}/v1/images/generations", content=body)
        assert answer.status_code == 400, body
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert httpx.post(f"{server}/v1/images/edits", content=b"x").status_code == 400
    assert httpx.get(f"{server}/v1/nothing").status_code == 404
    assert httpx.get(f"{server}/v1/images/generations").json()["error"]["message"] == "Method Not Allowed"


def test_the_size_of_a_body_is_bounded(server):
    def chunks():
        for _ in range(40):
            yield b"x" * 2**20

    for content in (b"x" * (33 * 2**20), chunks(), b"x" * (33 * 2**20), chunks()):
        answer = httpx.post(f"{server}/v1/images/generations", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    sent = 0

    def endless():
        nonlocal sent
        while sent < 2000:
            sent += 1
            yield b"x" * 2**20

    with contextlib.suppress(httpx.TransportError):
        assert httpx.post(f"{server}/v1/images/generations", content=endless()).status_code == 413
    assert sent < 500  # it is not read to the end
    assert httpx.get(f"{server}/healthz").status_code == 200


def test_other_origins(server):
    answer = httpx.get(f"{server}/v1/models", headers={"Origin": "https://page.example"})
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{server}/v1/images/generations", headers=asked).status_code == 200
    assert httpx.get(f"{server}/v1/models", headers={"Origin": server}).status_code == 200
    odd = ({"Host": "["}, {"Host": "a]b"}, {"Origin": "http://["}, {"Origin": "null"}, {"Host": "elsewhere.example"})
    for headers in (*odd, {"Origin": "https://elsewhere.example"}):
        other = httpx.get(f"{server}/v1/models", headers=headers)
        what = min(headers).lower()
        assert (other.status_code, other.json()["error"]["code"]) == (403, f"{what}_not_allowed")
        assert f"--allow-{what}" in other.json()["error"]["message"]
        assert "access-control-allow-origin" not in other.headers
    wrong = httpx.post(f"{server}/v1/images/generations", content=b"{", headers={"Origin": "https://page.example"})
    assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (400, "https://page.example")


def test_a_server_behind_a_proxy_has_other_names(bundles):
    with serving(bundles[0], "--check", "never", "--allow-host", "images.example") as (_, address):
        for host, status in (("images.example", 200), ("images.example:8000", 200), ("other.example", 403)):
            assert httpx.get(f"{address}/v1/models", headers={"Host": host}).status_code == status


def test_a_client_that_ends_in_the_middle_of_its_request(server):
    before = httpx.get(f"{server}/metrics").text
    host, port = server.removeprefix("http://").split(":")
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n{"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode())
    gone = 'var_request_seconds_count{path="/v1/images/generations",status="499"}'
    assert gone not in before
    eventually(lambda: gone in httpx.get(f"{server}/metrics").text)


def test_requests_have_ids(server):
    assert httpx.get(f"{server}/v1/models", headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
    odd = httpx.get(f"{server}/v1/models", headers={"X-Request-Id": "x" * 99}).headers["x-request-id"]
    assert len(odd) == 32


def drawn_of(server, name):
    found = 0.0
    for line in httpx.get(f"{server}/metrics").text.splitlines():
        if line.startswith(name):
            found += float(line.rpartition(" ")[2])
    return found


def test_requests_of_different_settings_share_batches(client, server, pipeline):
    before, results = drawn_of(server, "var_batches_total"), {}

    def ask(k):
        extra = {"seed": k, "cfg": k / 4, "top_k": k + 1}
        results[k] = client.images.generate(prompt=str(k), extra_body=extra).data[0]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn_of(server, "var_batches_total") - before < 20
    for k, datum in results.items():
        wanted = pipeline.generate(k, seeds=k, cfg=k / 4, top_k=k + 1).images[0]
        np.testing.assert_array_equal(pixels(datum), wanted)


def test_a_client_that_leaves_is_not_drawn_for(client, server):
    before = drawn_of(server, 'var_images_total{model="demo-fp32",result="cancelled"}')
    for _ in range(3):
        with client.images.generate(prompt="88", n=8, stream=True, partial_images=6) as stream:
            next(iter(stream))
    eventually(lambda: drawn_of(server, 'var_images_total{model="demo-fp32",result="cancelled"}') > before)
    assert httpx.get(f"{server}/healthz").json() == {"status": "ok"}


def test_a_key_is_asked_for(bundles, tmp_path):
    file = tmp_path / "key"
    file.write_text("a-long-secret\n")
    with serving(bundles[0], "--api-key-file", file, "--check", "never", "--host", "0.0.0.0") as (_, address):
        address = address.replace("0.0.0.0", "127.0.0.1")
        for key in ("wrong", "", "a-long-secret-and-more"):
            client = openai.OpenAI(base_url=f"{address}/v1", api_key=key or "x", max_retries=0)
            with pytest.raises(openai.AuthenticationError, match="API key"):
                client.models.list()
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/healthz").status_code == 200
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="a-long-secret", max_retries=0)
        assert client.models.list().data


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_finishes_what_runs(bundles, number):
    with serving(bundles[0], "--check", "never") as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        client.images.generate(prompt="1")
        stream = client.images.generate(prompt="88", n=8, stream=True, partial_images=6)
        events = [next(stream)]
        process.send_signal(number)
        events += stream
        assert [event.type for event in events].count("image_generation.completed") == 8
        assert process.wait(30) == 0


def test_killed_it_is_seen_and_starts_again(bundles):
    with serving(bundles[0], "--check", "never") as (process, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        client.images.generate(prompt="1")
        stream = client.images.generate(prompt="88", n=10, stream=True, partial_images=6)
        next(stream)
        process.kill()
        with pytest.raises((openai.APIConnectionError, httpx.HTTPError)):
            list(stream)
    with serving(bundles[0], "--check", "never") as (_, address), serving(bundles[0], "--check", "never") as (_, other):
        for each in (address, other):  # two servers of one bundle
            client = openai.OpenAI(base_url=f"{each}/v1", api_key="none", max_retries=0)
            assert client.images.generate(prompt="1").data
    assert (bundles[0] / MANIFEST).is_file()
