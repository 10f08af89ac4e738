"""Pictures of a network while it learns; `callback.Pictures` draws them in any project of Lightning's."""
