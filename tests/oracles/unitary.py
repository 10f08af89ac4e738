"""Recurrent matrices that are unitary by construction: a product of layers of rotations in pairs of coordinates.

The equations are those of the authors' code, which is named; the papers' texts were not seen.
"""

import numpy as np

from oracles import relu, sigmoid


def rotations(theta, phi=None):
    """The product of all layers, as in jingli9111/EUNN-tensorflow, eunn.py, tunable; `theta` is [n/2, layers].

    Coordinates there are in one row, where a layer turns (0, 1), (2, 3) ..., the next (1, 2), (3, 4) ... In the cells
    the even ones come first: 0, 2, 4 ... 1, 3, 5 ...
    """
    phi = np.zeros_like(theta) if phi is None else phi
    pairs, layers = theta.shape
    n, product = 2 * pairs, np.eye(2 * pairs, dtype=complex)
    for layer in range(layers):
        first = layer % 2
        M = np.eye(n, dtype=complex)
        for k, j in enumerate(range(first, n - 1, 2)):
            cos, sin, turn = np.cos(theta[k, layer]), np.sin(theta[k, layer]), np.exp(1j * phi[k, layer])
            M[j : j + 2, j : j + 2] = [[cos, -sin * turn], [sin, cos * turn]]
        product = M @ product
    row = np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)])
    return product[np.ix_(row, row)]


def goru(p, x, h, capacity):
    """Jing et al. 2017, a GRU whose candidate has an orthogonal matrix and modReLU.

    jingli9111/GORU-tensorflow, goru.py, adds 0.001 to |z|.
    """
    r, g = (sigmoid(W @ h + U @ x + b) for W, U, b in ((p.W_r, p.U_r, p.b_r), (p.W_g, p.U_g, p.b_g)))
    z = r * (rotations(p.theta).real @ h) + p.U_c @ x
    h = g * h + (1 - g) * np.sign(z) * relu(np.abs(z) + p.b_c)
    return h, (h,)


def eunn(p, x, re, im, capacity):
    """Jing et al. 2017, complex: h = modReLU(D (rotations) h + U x), D diagonal of e^{iω}.

    jingli9111/EUNN-tensorflow, eunn.py, adds 0.01 to |z|, where here 1e-6 is added to |z|².
    """
    W = np.diag(np.exp(1j * p.omega)) @ rotations(p.theta, p.phi)
    z = W @ (re + 1j * im) + (p.U_re + 1j * p.U_im) @ x
    norm = np.sqrt(np.abs(z) ** 2 + 1e-6)
    h = relu(norm + p.b) * z / norm
    return np.concatenate([h.real, h.imag]), (h.real, h.imag)
