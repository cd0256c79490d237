"""Allocate, hand over arrays, say how much work there is."""

from .op import _message_reference as message, _backward_reference as message_backward, _double_backward_reference as message_double_backward
