{{/*
Names, labels and small conversions.

Rules: the names are those of Ratify's chart, so that constraint templates, federated credentials and people's scripts go
on working. Nothing here looks at the cluster (no `lookup`): what is rendered depends on the values alone, and is the same
in `helm template`, Argo CD and Flux.
What does not belong here: what is trusted (_trust.tpl), TLS and the command line (_serving.tpl), warnings (_notes.tpl).
*/}}

{{- define "countersign.name" -}}
{{- default "ratify" .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "countersign.fullname" -}}
{{- $name := include "countersign.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "countersign.selectorLabels" -}}
app.kubernetes.io/name: {{ include "countersign.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "countersign.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "countersign.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "countersign.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default (printf "v%s" $.Chart.AppVersion) .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "countersign.serviceAccountName" -}}
{{- if or .Values.serviceAccount.create .Values.azureWorkloadIdentity.clientId }}
{{- default (include "countersign.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "countersign.gatekeeperNamespace" -}}
{{- default "gatekeeper-system" .Values.gatekeeper.namespace }}
{{- end }}

{{/* Gatekeeper 3.11 brought these versions; the suffix lets its pre-releases count. */}}
{{- define "countersign.providerAPIVersion" -}}
externaldata.gatekeeper.sh/{{ semverCompare ">=3.11.0-0" .Values.gatekeeper.version | ternary "v1beta1" "v1alpha1" }}
{{- end }}

{{- define "countersign.assignAPIVersion" -}}
mutations.gatekeeper.sh/{{ semverCompare ">=3.11.0-0" .Values.gatekeeper.version | ternary "v1" "v1beta1" }}
{{- end }}

{{- define "countersign.configAPIVersion" -}}
config.ratify.deislabs.io/v1beta1
{{- end }}

{{/* Whether several pods run: "true" or nothing. */}}
{{- define "countersign.severalReplicas" -}}
{{- if .Values.autoscaling.enabled }}
{{- if gt (int .Values.autoscaling.minReplicas) 1 }}true{{ end }}
{{- else if gt (int .Values.replicaCount) 1 }}true{{ end }}
{{- end }}

{{/* Seconds of a duration as Go writes it, such as 1h30m or 500ms. */}}
{{- define "countersign.seconds" -}}
{{- $factors := dict "ns" 0.000000001 "us" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 }}
{{- $total := 0.0 }}
{{- range regexFindAll "[0-9.]+(?:ns|us|ms|s|m|h)" . -1 }}
{{- $number := regexFind "^[0-9.]+" . }}
{{- $total = addf $total (mulf (float64 $number) (get $factors (trimPrefix $number .))) }}
{{- end }}
{{- $total }}
{{- end }}

{{/* A number as a decimal without exponent; large ones come out of YAML as floats. */}}
{{- define "countersign.integer" -}}
{{- printf "%d" (int64 .) }}
{{- end }}
