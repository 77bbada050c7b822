/// How a checkpoint names the tensors of a vision transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum VitNaming {
    /// As timm and the DeiT repository: `blocks.0.attn.qkv.weight`, q, k and v in one layer.
    Timm,
    /// As transformers' ViT: `vit.encoder.layer.0.attention.attention.query.weight`.
    Vit,
    /// As transformers' DeiT: the same under `deit.`.
    Deit,
}

/// The linear layers of one transformer block, by what they compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// q, k and v in one.
    Qkv,
    Query,
    Key,
    Value,
    /// What mixes the heads.
    Mix,
    Expand,
    Contract,
}

impl VitNaming {
    /// The roles of a block's layers, in the order in which they run.
    pub(super) fn roles(self) -> &'static [Role] {
        match self {
            VitNaming::Timm => &[Role::Qkv, Role::Mix, Role::Expand, Role::Contract],
            VitNaming::Vit | VitNaming::Deit => {
                &[Role::Query, Role::Key, Role::Value, Role::Mix, Role::Expand, Role::Contract]
            }
        }
    }

    /// The name of a layer of block `index`, without `.weight`.
    pub(super) fn layer(self, index: usize, role: Role) -> String {
        let tail = match (self, role) {
            (VitNaming::Timm, Role::Mix) => "attn.proj",
            (VitNaming::Timm, Role::Expand) => "mlp.fc1",
            (VitNaming::Timm, Role::Contract) => "mlp.fc2",
            (VitNaming::Timm, _) => "attn.qkv",
            (_, Role::Key) => "attention.attention.key",
            (_, Role::Value) => "attention.attention.value",
            (_, Role::Mix) => "attention.output.dense",
            (_, Role::Expand) => "intermediate.dense",
            (_, Role::Contract) => "output.dense",
            (_, Role::Query | Role::Qkv) => "attention.attention.query",
        };
        format!("{}.{index}.{tail}", self.blocks())
    }

    /// The name of the norm before attention and of that before the multilayer perceptron.
    pub(super) fn norms(self, index: usize) -> [String; 2] {
        let tails = match self {
            VitNaming::Timm => ["norm1", "norm2"],
            VitNaming::Vit | VitNaming::Deit => ["layernorm_before", "layernorm_after"],
        };
        tails.map(|tail| format!("{}.{index}.{tail}", self.blocks()))
    }

    /// What the blocks' names begin with.
    pub(super) fn blocks(self) -> &'static str {
        match self {
            VitNaming::Timm => "blocks",
            VitNaming::Vit => "vit.encoder.layer",
            VitNaming::Deit => "deit.encoder.layer",
        }
    }

    pub(super) fn last_norm(self) -> &'static str {
        match self {
            VitNaming::Timm => "norm",
            VitNaming::Vit => "vit.layernorm",
            VitNaming::Deit => "deit.layernorm",
        }
    }

    pub(super) fn class_token(self) -> &'static str {
        match self {
            VitNaming::Timm => "cls_token",
            VitNaming::Vit => "vit.embeddings.cls_token",
            VitNaming::Deit => "deit.embeddings.cls_token",
        }
    }

    pub(super) fn distillation_token(self) -> &'static str {
        match self {
            VitNaming::Timm => "dist_token",
            VitNaming::Vit => "vit.embeddings.distillation_token",
            VitNaming::Deit => "deit.embeddings.distillation_token",
        }
    }

    pub(super) fn positions(self) -> &'static str {
        match self {
            VitNaming::Timm => "pos_embed",
            VitNaming::Vit => "vit.embeddings.position_embeddings",
            VitNaming::Deit => "deit.embeddings.position_embeddings",
        }
    }

    /// The convolution that embeds patches.
    pub(super) fn patches(self) -> &'static str {
        match self {
            VitNaming::Timm => "patch_embed.proj",
            VitNaming::Vit => "vit.embeddings.patch_embeddings.projection",
            VitNaming::Deit => "deit.embeddings.patch_embeddings.projection",
        }
    }

    /// The heads on the class token and on the distillation token that a checkpoint may have; with
    /// both, the logits are their mean.
    pub(super) fn heads(self) -> [(&'static str, Option<&'static str>); 2] {
        match self {
            VitNaming::Timm => [("head", Some("head_dist")), ("head", None)],
            VitNaming::Vit | VitNaming::Deit => {
                [("cls_classifier", Some("distillation_classifier")), ("classifier", None)]
            }
        }
    }
}
