"""The operations that stock XLA runs slowly on some platform. Each module explains why."""

from mnv2.ops.batch_norm import Axis as Axis
from mnv2.ops.batch_norm import DeviceGroup as DeviceGroup
from mnv2.ops.batch_norm import normalize_batch as normalize_batch
from mnv2.ops.conv import conv as conv
from mnv2.ops.depthwise import depthwise_conv as depthwise_conv
from mnv2.ops.depthwise_norm import depthwise_and_normalize as depthwise_and_normalize
from mnv2.ops.expansion import expand_and_normalize as expand_and_normalize
from mnv2.ops.expansion import is_faster_fused as is_faster_fused
from mnv2.ops.padding import Padding as Padding
from mnv2.ops.padding import explicit_padding as explicit_padding
from mnv2.ops.platforms import PLAIN as PLAIN
from mnv2.ops.platforms import platform_of as platform_of
from mnv2.ops.platforms import traced_for as traced_for
from mnv2.ops.pointwise import pointwise_conv as pointwise_conv
from mnv2.ops.relu6 import relu6 as relu6
from mnv2.ops.shifted_products import DepthwiseOptions as DepthwiseOptions
