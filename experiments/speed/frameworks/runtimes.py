"""The runtimes for inference, with a file of any origin, and the files that mnv2 exports."""

from typing import Any

import numpy as np

from experiments.common.timing import Step
from experiments.speed.frameworks.tasks import Task


def onnxruntime(task: Task, content: bytes, images: np.ndarray) -> Step:
    """Returns a call of ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = task.threads
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: np.ascontiguousarray(images)}
    return lambda: session.run(None, given)


def openvino(task: Task, content: bytes, images: np.ndarray) -> Step:
    """Returns a call of OpenVINO, in float32 where the file is."""
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": task.threads,
    }
    core = ov.Core()
    request: Any = core.compile_model(core.read_model(content), "CPU", settings)
    request = request.create_infer_request()
    given = ov.Tensor(np.ascontiguousarray(images))
    return lambda: request.infer({0: given})


def litert(task: Task, content: bytes, images: np.ndarray) -> Step:
    """Returns a call of LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    from mnv2.deployment.exported import quantized

    interpreter = Interpreter(model_content=content, num_threads=task.threads)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    interpreter.set_tensor(given["index"], quantized(images, given))
    return interpreter.invoke


def exported(task: Task, to: str) -> bytes:
    """Returns the file of this project's network, for normalised images and logits."""
    from experiments.common.initialisation import random_network
    from mnv2.deployment.formats import content
    from mnv2.deployment.program import program_of
    from mnv2.pretrained import Preprocessing, Pretrained

    model, variables = random_network("mobilenet_v2", width=task.width)
    loaded = Pretrained(model, variables, Preprocessing(), (task.size, task.size))
    program = program_of(loaded, pixels=False, batch=task.batch)
    return content(program, to, [task.images()])
