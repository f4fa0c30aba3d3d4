"""Make the seeds that are not committed elsewhere: `python -m tests.fuzz.make_corpus`, from the repository's root."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from edgekit.deploy.engine.passport import Passport
from edgekit.deploy.runtimes.exported_program import save_program
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save_file

SEEDS = Path(__file__).parent / "corpus" / "seeds"


def make_models() -> None:
    """Write small graphs with tensors in all possible places, weight files, and a torch.export program."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [10, 4], [0.1] * 40)
    outside = helper.make_tensor("o", TensorProto.FLOAT, [2], [0.0] * 2)
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=weight)], "branch", [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [10, 4])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["y"]), helper.make_node("Gemm", ["f", "w"], ["z"], transB=1),
        helper.make_node("If", ["b"], ["i"], then_branch=branch, else_branch=branch),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "z")]
    for name, tensors in (("plain", [weight]), ("external", [weight, outside])):
        graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        (SEEDS / f"onnx-{name}.onnx").write_bytes(model.SerializeToString())
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2)).eval()
    state = torch.nn.Linear(4, 2).state_dict()
    torch.save(state, SEEDS / "weights-zip.pt")
    torch.save(state, SEEDS / "weights-legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, SEEDS / "weights.safetensors")
    save_program(torch.export.export(network, (torch.zeros(1, 1, 4, 4),)), SEEDS / "program.pt2")


def make_data() -> None:
    """Write data sets of a few images in each form, and one image in several formats."""
    generator = np.random.default_rng(0)
    grey = generator.integers(0, 256, (4, 6, 5), dtype=np.uint8)
    colour = generator.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    classes = np.arange(4) % 2
    np.savez_compressed(SEEDS / "set-grey.npz", images=grey, labels=classes, names=np.asarray(["cat", "dog"]))
    np.savez(SEEDS / "set-colour.npz", images=colour, labels=classes)
    idx = b"\0\0\x08\x03" + np.asarray(grey.shape, ">i4").tobytes() + grey.tobytes()
    labels = b"\0\0\x08\x01" + np.asarray([4], ">i4").tobytes() + classes.astype(np.uint8).tobytes()
    for name, content in (("images", idx), ("labels", labels)):
        (SEEDS / f"idx-{name}.gz").write_bytes(gzip.compress(content, mtime=0))
    (SEEDS / "table.csv").write_text("Image,Category\n1,cat\n1.png,dog\n")
    for suffix in ("png", "jpg", "gif", "webp", "bmp", "tiff", "ppm"):
        stream = io.BytesIO()
        Image.fromarray(colour[0]).save(stream, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
        (SEEDS / f"image.{suffix}").write_bytes(stream.getvalue())


def make_settings() -> None:
    """Write a recipe, an engine's passport, and signatures with their public key."""
    (SEEDS / "recipe.toml").write_text(
        'name = "own"\n[data]\ndata = "digits"\nseed = 1\n[model]\nname = "lenet"\n'
        '[preprocess]\nmean = [0.5, 0.5, 0.5]\n[train]\nepochs = 3\nlr = 1e-3\noptimizer = "sgd"\n'
    )
    passport = Passport(
        "tensorrt", "10.3.0", ("8.6",), False, False, "Linux", "x86_64", "12.6", "560.1", "a GPU", ("FP16",), "0" * 64
    )
    (SEEDS / "passport.json").write_text(json.dumps(passport.to_json()["tensorrt"]))
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    for name, encoding, form in (("ssh", Encoding.OpenSSH, PublicFormat.OpenSSH),
                                 ("pem", Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)):  # fmt: skip
        (SEEDS / f"key-{name}").write_bytes(private.sign(b"x") + private.public_key().public_bytes(encoding, form))


if __name__ == "__main__":
    SEEDS.mkdir(parents=True, exist_ok=True)
    make_models()
    make_data()
    make_settings()
