package docker

import (
	"context"
	"fmt"
)

// Image is what a container takes from its image when nothing else is said.
type Image struct {
	ID         string
	Entrypoint []string
	Cmd        []string
	Env        []string
	Labels     map[string]string
}

// Image inspects a local image. ErrNotFound when it has to be pulled first.
func (c *Client) Image(ctx context.Context, ref string) (Image, error) {
	res, err := c.api.ImageInspect(ctx, ref)
	if err != nil {
		return Image{}, fmt.Errorf("inspecting image %q: %w", ref, c.explain(ctx, err))
	}
	img := Image{ID: res.ID}
	if cfg := res.Config; cfg != nil {
		img.Entrypoint, img.Cmd, img.Env, img.Labels = cfg.Entrypoint, cfg.Cmd, cfg.Env, cfg.Labels
	}
	return img, nil
}
