package worker

import "github.com/ownbucket/ownbucket/internal/media"

// UseSources replaces where the worker's uploads come from.
func (w *Worker) UseSources(s *media.Sources) { w.handlers.Sources = s }
