# SPDX-License-Identifier: Apache-2.0
"""CreateContainer, StartContainer and all else that is done with one container of a pod."""
