# SPDX-License-Identifier: Apache-2.0
"""The CRI's two services over gRPC: protobuf in, values of the model out, and back."""
