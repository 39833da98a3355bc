//! Reports: the same [`Summary`](crate::summary::Summary) for people, pictures, tools and scripts.
