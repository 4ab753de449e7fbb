"""The paper's two analyses of a trained network: Grad-CAM of its stages, similarity of its channels."""
